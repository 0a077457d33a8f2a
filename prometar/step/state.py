"""The complete state of a run: what a checkpoint holds, and all that a step changes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prometar.methods.prompts import Leaves


@dataclass(frozen=True)
class State:
    """Leaves and momenta of the prompts and the gate, the prompts' average, and the number of steps done.

    Data order, augmentations and task draws are functions of (seed, step), so nothing else is needed to
    continue exactly.
    """

    prompts: Leaves
    prompt_momenta: Leaves
    gate: Leaves
    gate_momenta: Leaves
    average: Leaves
    step: int = 0

    @staticmethod
    def start(prompts: Leaves, gate: Leaves) -> "State":
        """Step 0, momenta at zero, nothing averaged yet."""
        return State(prompts, _zeros(prompts), gate, _zeros(gate), {})

    @property
    def tested(self) -> Leaves:
        """The prompts that accuracy is measured with: their average over epochs, where one is kept."""
        return self.average or self.prompts

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by "<group>/<leaf>"."""
        return {f"{group}/{name}": leaf for group in _GROUPS for name, leaf in getattr(self, group).items()}

    def to(self, device: torch.device) -> "State":
        """The same state on a device."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return State.from_tensors(moved, self.step)

    @staticmethod
    def from_tensors(tensors: Leaves, step: int) -> "State":
        """The inverse of `tensors`."""
        groups: dict[str, Leaves] = {group: {} for group in _GROUPS}
        for key, value in tensors.items():
            group, _, name = key.partition("/")
            groups[group][name] = value
        return State(**groups, step=step)


_GROUPS = ("prompts", "prompt_momenta", "gate", "gate_momenta", "average")


def _zeros(leaves: Leaves) -> Leaves:
    return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
