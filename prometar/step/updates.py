"""Updates of leaves at the learning rates of an epoch, and the learning-rate schedule."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from prometar.methods.composition import section_of
from prometar.methods.optimizers import Optimizer, OptimizerState, Slots
from prometar.methods.prompts import Leaves, Tensors


@dataclass(frozen=True)
class Rates:
    """Learning rates of both phases, fixed within an epoch.

    Args:
        lr: Learning rate of the leaves.
        gate_lr: Learning rate of the gate (the modulator's learnable tensors).
        factors: Factors of `lr` for the leaves of a section of the method, such as "adapters". Default: 1.
    """

    lr: float
    gate_lr: float
    factors: Mapping[str, float] = field(default_factory=dict)

    def of_leaf(self, name: str) -> float:
        """Return the learning rate of a leaf."""
        return self.lr * self.factors.get(section_of(name), 1.0)


def update_leaves(
    optimizer: Optimizer,
    leaves: Leaves,
    gradient: Tensors,
    state: OptimizerState,
    lr_of: Callable[[str], float],
) -> tuple[Leaves, OptimizerState]:
    """Return leaves and optimizer state after one update.

    The optimizer is called once per group of leaves with the same learning rate.

    Args:
        gradient: Gradient of each leaf. It is emptied, to free each tensor after its use.
        lr_of: Function that returns the learning rate of a leaf, given its name.
    """
    groups: dict[float, Leaves] = {}
    for name, leaf in leaves.items():
        groups.setdefault(lr_of(name), {})[name] = leaf
    new_leaves: Leaves = {}
    new_slots: Slots = {slot: {} for slot in state.slots}
    for lr, group in groups.items():
        group_gradient = {name: gradient.pop(name) for name in group}
        group_slots: Slots = {}
        for slot, tensors in state.slots.items():
            group_slots[slot] = {name: tensors[name] for name in group}
        updated, updated_slots = optimizer(
            group, group_gradient, group_slots, lr=lr, num_updates=state.num_updates
        )
        new_leaves |= updated
        for slot, tensors in updated_slots.items():
            # A custom optimizer may add slots in its first update.
            new_slots.setdefault(slot, {}).update(tensors)
    # Groups must not change the order of the leaves, because reductions over leaves depend on it.
    new_leaves = {name: new_leaves[name] for name in leaves}
    return new_leaves, OptimizerState(new_slots, state.num_updates + 1)


def warmup_cosine(epoch: int, *, epochs: int, lr: float, warmup_lr: float, warmup_epochs: int) -> float:
    """Return the lr of a 0-based epoch: `warmup_lr`, then lr / 2 * (1 + cos(pi * cosine_epoch / epochs)).

    The cosine starts after the warm-up (cosine_epoch = epoch - warmup_epochs) but has a length of `epochs`
    epochs, so the lr never reaches zero. This is Dassl's schedule, as in the published runs.
    """
    if epoch < warmup_epochs:
        return warmup_lr
    return lr * (1 + math.cos(math.pi * (epoch - warmup_epochs) / epochs)) / 2
