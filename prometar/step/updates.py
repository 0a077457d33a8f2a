"""Updates of leaves with the learning rates of an epoch, and the learning-rate schedule."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from prometar.methods.composition import section_of
from prometar.methods.optimizers import Optimizer, OptimizerState, Slots
from prometar.methods.prompts import Leaves, Tensors


@dataclass(frozen=True)
class Rates:
    """Learning rates of the direct and the meta phase, fixed within an epoch.

    Args:
        lr: Learning rate of the leaves.
        gate_lr: Learning rate of the gate (the modulator's learnable tensors).
        factors: Factor of `lr` for the leaves of each section of the method, such as "adapters". Missing
            sections have the factor 1.
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
        optimizer: Function that updates the leaves of a group.
        leaves: Leaves by name.
        gradient: Gradient of each leaf. It is emptied, to free each tensor after its use.
        state: State of the optimizer.
        lr_of: Function that returns the learning rate of a leaf, given its name.
    """
    group_by_lr: dict[float, Leaves] = {}
    for name, leaf in leaves.items():
        group_by_lr.setdefault(lr_of(name), {})[name] = leaf
    new_leaves: Leaves = {}
    new_slots: Slots = {slot: {} for slot in state.slots}
    for lr, group in group_by_lr.items():
        group_gradient = {name: gradient.pop(name) for name in group}
        group_slots: Slots = {}
        for slot, tensors in state.slots.items():
            group_slots[slot] = {name: tensors[name] for name in group}
        updated_leaves, updated_slots = optimizer(
            group, group_gradient, group_slots, lr=lr, num_updates=state.num_updates
        )
        new_leaves |= updated_leaves
        for slot, tensors in updated_slots.items():
            # A custom optimizer may add slots in its first update.
            new_slots.setdefault(slot, {}).update(tensors)
    # Keep the order of the leaves, because the rounding of sums over leaves depends on it.
    in_order = {name: new_leaves[name] for name in leaves}
    return in_order, OptimizerState(new_slots, state.num_updates + 1)


def warmup_cosine(epoch: int, *, epochs: int, lr: float, warmup_lr: float, warmup_epochs: int) -> float:
    """Return the learning rate of a 0-based epoch.

    The learning rate is `warmup_lr` in the warm-up. Afterwards, it is
    lr / 2 * (1 + cos(pi * cosine_epoch / epochs)), where cosine_epoch = epoch - warmup_epochs.

    The cosine has a length of `epochs` epochs, although it starts after the warm-up. So the learning rate
    never reaches zero. This is Dassl's schedule, as in the published runs.
    """
    if epoch < warmup_epochs:
        return warmup_lr
    cosine_epoch = epoch - warmup_epochs
    return lr * (1 + math.cos(math.pi * cosine_epoch / epochs)) / 2
