"""State of a run: everything that training changes and that checkpoints contain."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from prometar.methods.prompts import Leaves, Tensors


@dataclass(frozen=True)
class State:
    """Leaves, modulator tensors (`gate`), the momenta of both, averaged leaves, and the number of steps.

    `leaves`: the learned tensors of all parts of the method, by name, for example `text.0`.

    Data order, augmentations and meta tasks are functions of (seed, step), so this state suffices to resume.
    """

    leaves: Leaves
    prompt_momenta: Tensors
    gate: Leaves
    gate_momenta: Tensors
    average: Leaves
    step: int = 0

    @staticmethod
    def start(leaves: Leaves, gate: Leaves) -> "State":
        """Return the state at step 0, with zero momenta and no average."""
        return State(leaves, tree_map(torch.zeros_like, leaves), gate, tree_map(torch.zeros_like, gate), {})

    @property
    def evaluation_leaves(self) -> Leaves:
        """Leaves for evaluation: the average over epochs, or the last leaves if there is no average."""
        return self.average or self.leaves

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors, named "<group>/<leaf>"."""
        return {
            f"{stored}/{name}": leaf
            for group, stored in _STORED_NAMES.items()
            for name, leaf in getattr(self, group).items()
        }

    def to(self, device: torch.device) -> "State":
        """Return the state with all tensors on `device`."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return State.from_tensors(moved, self.step)

    @staticmethod
    def from_tensors(tensors: Tensors, step: int) -> "State":
        """Return the state with these tensors, named as in the result of `State.tensors`."""
        groups: dict[str, Tensors] = {group: {} for group in _STORED_NAMES}
        attributes = {stored: group for group, stored in _STORED_NAMES.items()}
        for key, value in tensors.items():
            stored, _, name = key.partition("/")
            groups[attributes[stored]][name] = value
        return State(**groups, step=step)


_STORED_NAMES = {
    "leaves": "prompts",
    "prompt_momenta": "prompt_momenta",
    "gate": "gate",
    "gate_momenta": "gate_momenta",
    "average": "average",
}
"""Names of the groups of tensors in checkpoints, which version 0.2 defined."""
