"""State of a run: everything that training changes and that checkpoints contain."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prometar.methods.optimizers import SGD, Optimizer, OptimizerState, Slots
from prometar.methods.prompts import Leaves, Tensors

_LEAF_SLOT = "prompt_"
"""Prefix of the group of a slot of the leaves' optimizer, such as "prompt_momenta"."""

_GATE_SLOT = "gate_"
"""Prefix of the group of a slot of the gate's optimizer, such as "gate_momenta"."""


@dataclass(frozen=True)
class State:
    """State of a run, complete enough to resume it.

    Data order, augmentations and meta tasks are not part of it, because they depend only on seed and step.

    Args:
        leaves: Learned tensors of all components of the method by name, such as `text.0`.
        optimizer: State of the optimizer of the leaves.
        gate: The modulator's learnable tensors.
        gate_optimizer: State of the optimizer of the gate.
        average: Averaged leaves. Empty without an averager, and before the first epoch ends.
        step: Number of training steps so far.
    """

    leaves: Leaves
    optimizer: OptimizerState
    gate: Leaves
    gate_optimizer: OptimizerState
    average: Leaves
    step: int = 0

    @staticmethod
    def start(leaves: Leaves, gate: Leaves, optimizer: Optimizer = SGD()) -> "State":
        """Return the state at step 0, with the optimizer's initial slots and no average."""
        return State(
            leaves=leaves,
            optimizer=OptimizerState(optimizer.initialize(leaves)),
            gate=gate,
            gate_optimizer=OptimizerState(optimizer.initialize(gate)),
            average={},
        )

    @property
    def evaluation_leaves(self) -> Leaves:
        """Leaves for evaluation: the average over epochs, or the last leaves if there is no average."""
        return self.average or self.leaves

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors, named "<group>/<leaf>". Each slot of each optimizer is a group.

        The group of the leaves is called prompts. So the groups of SGD are prompts, prompt_momenta, gate,
        gate_momenta and average, as in the checkpoints of version 0.2.
        """
        groups = {"prompts": self.leaves}
        for slot, tensors in self.optimizer.slots.items():
            groups[f"{_LEAF_SLOT}{slot}"] = tensors
        groups["gate"] = self.gate
        for slot, tensors in self.gate_optimizer.slots.items():
            groups[f"{_GATE_SLOT}{slot}"] = tensors
        groups["average"] = self.average
        named: dict[str, Tensor] = {}
        for group, tensors in groups.items():
            for name, tensor in tensors.items():
                named[f"{group}/{name}"] = tensor
        return named

    def counters(self) -> dict[str, int]:
        """Return the numbers of steps and of the optimizers' updates, by name."""
        return {
            "step": self.step,
            "prompt_updates": self.optimizer.num_updates,
            "gate_updates": self.gate_optimizer.num_updates,
        }

    def to(self, device: torch.device) -> "State":
        """Return the state with all tensors on `device`."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return State.from_tensors(moved, self.counters())

    @staticmethod
    def from_tensors(tensors: Tensors, counters: Mapping[str, int]) -> "State":
        """Return the state with these tensors and counters, named as by `tensors` and `counters`.

        Numbers of updates may be missing, as in checkpoints of version 0.2. Its optimizer (SGD) does not use
        them.

        Raises:
            KeyError: a tensor belongs to no group, or the number of steps is missing.
        """
        groups: dict[str, Leaves] = {"prompts": {}, "gate": {}, "average": {}}
        leaf_slots: Slots = {}
        gate_slots: Slots = {}
        for key, tensor in tensors.items():
            group, _, name = key.partition("/")
            if group.startswith(_LEAF_SLOT):
                leaf_slots.setdefault(group.removeprefix(_LEAF_SLOT), {})[name] = tensor
            elif group.startswith(_GATE_SLOT):
                gate_slots.setdefault(group.removeprefix(_GATE_SLOT), {})[name] = tensor
            else:
                groups[group][name] = tensor
        return State(
            leaves=groups["prompts"],
            optimizer=OptimizerState(leaf_slots, counters.get("prompt_updates", 0)),
            gate=groups["gate"],
            gate_optimizer=OptimizerState(gate_slots, counters.get("gate_updates", 0)),
            average=groups["average"],
            step=counters["step"],
        )
