"""Inner loops: how the meta phase adapts the prompts to the support images."""

from dataclasses import dataclass
from typing import Protocol

import torch

from prometar.methods.prompts import Leaves


class InnerLoop(Protocol):
    """One step theta' = theta - lr * modulated gradient on the support images."""

    @property
    def lr(self) -> float:
        """How much of a gradient the step takes."""
        ...

    @property
    def second_order(self) -> bool:
        """Whether the task's and the regularizer's gradients are themselves differentiated."""
        ...

    @property
    def outer_weight(self) -> float:
        """Weight of the query loss in the outer loss."""
        ...

    def __call__(self, prompts: Leaves, gradient: Leaves) -> Leaves: ...


@dataclass(frozen=True)
class InnerSGD:
    """theta' = theta - lr * g (released: lr 5e-4, outer_weight 5e-4, second order).

    First order takes d theta' / d theta as the identity, as in FOMAML (MAML, ICML 2017); the gate
    still learns, since theta' depends on it directly.
    """

    lr: float = 5e-4
    outer_weight: float = 5e-4
    second_order: bool = True

    def __call__(self, prompts: Leaves, gradient: Leaves) -> Leaves:
        return {name: torch.add(leaf, gradient[name], alpha=-self.lr) for name, leaf in prompts.items()}
