"""Optimizers, which map gradients to new values of the leaves. They are pure functions of explicit state."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from pydantic import Field

from prometar.methods.prompts import Leaves, Tensors
from prometar.methods.section import ComponentSection, CustomKindSection, Kinds

if TYPE_CHECKING:
    from torch import Tensor

Slots = dict[str, Tensors]
"""Tensors that an optimizer keeps between updates: by slot (such as "momenta"), then by leaf."""


@dataclass(frozen=True)
class OptimizerState:
    """Slots of an optimizer, and the number of updates so far."""

    slots: Slots
    num_updates: int = 0


class Optimizer(Protocol):
    """Interface of optimizers. Leaves are updated independently of each other, in groups that share an lr."""

    def initialize(self, leaves: Leaves) -> Slots:
        """Return the slots before the first update. Each slot has a tensor for each leaf."""
        ...

    def __call__(
        self, leaves: Leaves, gradient: Tensors, slots: Slots, *, lr: float, num_updates: int
    ) -> tuple[Leaves, Slots]:
        """Return the new leaves and slots after `num_updates` earlier updates.

        Tensors must not be changed in place. The dictionary `gradient` may be emptied, to free its tensors.
        """
        ...


class OptimSection(ComponentSection):
    """Settings that all optimizers have: learning rates, by epoch and by section of the method.

    The lr of the warm-up epochs is `warmup_lr`. Then a cosine schedule starts at `lr`. For the leaves of a
    section, such as adapters, it starts at `lr` times the section's factor.

    The gate (the modulator's learnable tensors) has its own `gate_warmup_lr` and `gate_lr`. If
    `gate_schedule` is `configured`, they follow the same schedule. If it is `released`, the lr of the gate is
    always `gate_warmup_lr`, because the published code never steps the gate's schedule.
    """

    lr: float = Field(default=0.0025, ge=0, le=1e30)
    warmup_lr: float = Field(default=1e-5, ge=0, le=1e30)
    gate_lr: float = Field(default=2.5e-4, ge=0, le=1e30)
    gate_warmup_lr: float = Field(default=1e-6, ge=0, le=1e30)
    gate_schedule: Literal["released", "configured"] = "released"
    warmup_epochs: int = Field(default=1, ge=0)
    prompts_lr_factor: float = Field(default=1.0, ge=0, le=1e30)
    adapters_lr_factor: float = Field(default=1.0, ge=0, le=1e30)
    features_lr_factor: float = Field(default=1.0, ge=0, le=1e30)
    logits_lr_factor: float = Field(default=1.0, ge=0, le=1e30)

    @property
    def lr_factors(self) -> dict[str, float]:
        """Factors of the lr by section, without those that are 1."""
        factors = {
            "prompts": self.prompts_lr_factor,
            "adapters": self.adapters_lr_factor,
            "features": self.features_lr_factor,
            "logits": self.logits_lr_factor,
        }
        return {section: factor for section, factor in factors.items() if factor != 1}


class _BuiltInOptimizer(OptimSection):
    """Base class of built-in optimizers. Each slot starts with zeros."""

    SLOTS: ClassVar[tuple[str, ...]] = ()

    def initialize(self, leaves: Leaves) -> Slots:
        import torch

        slots: Slots = {}
        for slot in self.SLOTS:
            slots[slot] = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        return slots


class SGD(_BuiltInOptimizer):
    """SGD with momentum: b <- momentum * b + g + weight_decay * p, p <- p - lr * b.

    p: leaf. g: its gradient. b: slot `momenta`. Equals torch.optim.SGD.
    """

    SLOTS: ClassVar[tuple[str, ...]] = ("momenta",)

    kind: Literal["sgd"] = "sgd"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0, le=1e30)

    def __call__(
        self, leaves: Leaves, gradient: Tensors, slots: Slots, *, lr: float, num_updates: int
    ) -> tuple[Leaves, Slots]:
        import torch

        old = _detached(leaves)
        gradients = _take_gradients(gradient, leaves)
        old_momenta = _in_order(slots["momenta"], leaves)
        momenta = list(torch._foreach_add(gradients, old_momenta, alpha=self.momentum))
        momenta = list(torch._foreach_add(momenta, old, alpha=self.weight_decay))
        new = list(torch._foreach_add(old, momenta, alpha=-lr))
        return _by_leaf(leaves, new), {"momenta": _by_leaf(leaves, momenta)}


class _AdamBase(_BuiltInOptimizer):
    """Adam's step: p <- p - lr m' / (sqrt(v') + eps).

    p: leaf. g: its gradient. m <- beta1 m + (1 - beta1) g and v <- beta2 v + (1 - beta2) g^2 are the slots
    `means` and `squares`. In update t = 1, 2, ..., the bias-corrected means and squares are
    m' = m / (1 - beta1^t) and v' = v / (1 - beta2^t).
    """

    SLOTS: ClassVar[tuple[str, ...]] = ("means", "squares")

    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0, le=1e30)
    weight_decay: float = Field(default=5e-4, ge=0, le=1e30)

    def _step(
        self,
        leaves: Leaves,
        old: "list[Tensor]",
        gradients: "list[Tensor]",
        slots: Slots,
        *,
        lr: float,
        num_updates: int,
    ) -> tuple[Leaves, Slots]:
        import torch

        t = num_updates + 1
        old_means = _in_order(slots["means"], leaves)
        old_squares = _in_order(slots["squares"], leaves)
        means = list(torch._foreach_lerp(old_means, gradients, 1 - self.beta1))
        squares = list(torch._foreach_mul(old_squares, self.beta2))
        squares = list(torch._foreach_addcmul(squares, gradients, gradients, value=1 - self.beta2))

        roots = list(torch._foreach_sqrt(squares))
        corrected_roots = list(torch._foreach_div(roots, math.sqrt(1 - self.beta2**t)))
        denominators = list(torch._foreach_add(corrected_roots, self.eps))
        corrected_lr = lr / (1 - self.beta1**t)  # corrects the means
        new = list(torch._foreach_addcdiv(old, means, denominators, value=-corrected_lr))
        return _by_leaf(leaves, new), {"means": _by_leaf(leaves, means), "squares": _by_leaf(leaves, squares)}


class Adam(_AdamBase):
    """Adam (ICLR 2015). The gradient g + weight_decay * p enters both moments. Equals torch.optim.Adam."""

    kind: Literal["adam"] = "adam"

    def __call__(
        self, leaves: Leaves, gradient: Tensors, slots: Slots, *, lr: float, num_updates: int
    ) -> tuple[Leaves, Slots]:
        import torch

        old = _detached(leaves)
        gradients = _take_gradients(gradient, leaves)
        gradients = list(torch._foreach_add(gradients, old, alpha=self.weight_decay))
        return self._step(leaves, old, gradients, slots, lr=lr, num_updates=num_updates)


class AdamW(_AdamBase):
    """AdamW (ICLR 2019): p <- p (1 - lr * weight_decay), then Adam's step on g. Equals torch.optim.AdamW."""

    kind: Literal["adamw"] = "adamw"

    def __call__(
        self, leaves: Leaves, gradient: Tensors, slots: Slots, *, lr: float, num_updates: int
    ) -> tuple[Leaves, Slots]:
        import torch

        old = list(torch._foreach_mul(_detached(leaves), 1 - lr * self.weight_decay))
        gradients = _take_gradients(gradient, leaves)
        return self._step(leaves, old, gradients, slots, lr=lr, num_updates=num_updates)


class CustomOptimizer(CustomKindSection, OptimSection):
    """Custom optimizer. `component()` returns an object with the methods of `Optimizer`."""


def _detached(leaves: Leaves) -> "list[Tensor]":
    return [leaf.detach() for leaf in leaves.values()]


def _take_gradients(gradient: Tensors, leaves: Leaves) -> "list[Tensor]":
    """Remove the gradients of the leaves from `gradient`, and return them detached and contiguous.

    Autograd may return transposed gradients, but slots from a checkpoint are contiguous. Contiguous
    gradients give all slots one layout, so later reductions add in the same order in resumed runs.
    """
    return [gradient.pop(name).detach().contiguous() for name in leaves]


def _in_order(slot: Tensors, leaves: Leaves) -> "list[Tensor]":
    """Return the tensors of a slot in the order of the leaves."""
    return [slot[name] for name in leaves]


def _by_leaf(leaves: Leaves, tensors: "list[Tensor]") -> Tensors:
    """Return tensors, which are in the order of the leaves, by name of the leaf."""
    return dict(zip(leaves, tensors, strict=True))


OPTIMIZERS = Kinds({"sgd": SGD, "adam": Adam, "adamw": AdamW}, default="sgd", custom=CustomOptimizer)
