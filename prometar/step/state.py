"""State of a run: everything that training changes and that checkpoints contain."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from prometar.methods.prompts import Leaves, Tensors


@dataclass(frozen=True)
class State:
    """Prompts and modulator tensors (`gate`), the momenta of both, averaged prompts, and the number of steps.

    Data order, augmentations and meta tasks are functions of (seed, step), so this state suffices to resume.
    """

    prompts: Leaves
    prompt_momenta: Tensors
    gate: Leaves
    gate_momenta: Tensors
    average: Leaves
    step: int = 0

    @staticmethod
    def start(prompts: Leaves, gate: Leaves) -> "State":
        """Return the state at step 0, with zero momenta and no average."""
        return State(prompts, tree_map(torch.zeros_like, prompts), gate, tree_map(torch.zeros_like, gate), {})

    @property
    def evaluation_prompts(self) -> Leaves:
        """Prompts for evaluation: the average over epochs, or the last prompts if there is no average."""
        return self.average or self.prompts

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors, named "<group>/<leaf>"."""
        return {f"{group}/{name}": leaf for group in _GROUPS for name, leaf in getattr(self, group).items()}

    def to(self, device: torch.device) -> "State":
        """Return the state with all tensors on `device`."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return State.from_tensors(moved, self.step)

    @staticmethod
    def from_tensors(tensors: Tensors, step: int) -> "State":
        """Return the state with these tensors, named as in the result of `State.tensors`."""
        groups: dict[str, Tensors] = {group: {} for group in _GROUPS}
        for key, value in tensors.items():
            group, _, name = key.partition("/")
            groups[group][name] = value
        return State(**groups, step=step)


_GROUPS = ("prompts", "prompt_momenta", "gate", "gate_momenta", "average")
