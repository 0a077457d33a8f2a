"""Modulators: combine the regularizer's gradient with the task's gradient."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from prometar.errors import UserError
from prometar.methods.part import Chosen, CustomPart, Part
from prometar.methods.prompts import Leaves, linear

if TYPE_CHECKING:
    import torch


class Modulator(Part):
    """g = g_task + m * g_reg, for every token that the prompts put into the towers."""

    @property
    def constant(self) -> float | None:
        """m if it is one known number, so that one pass gives the sum of both gradients. Otherwise None."""
        return None

    def initialize(self, tokens: Leaves, generator: "torch.Generator") -> Leaves:
        """Return the modulator's own learnable leaves (default: none)."""
        return {}

    def __call__(self, gate: Leaves, task: Leaves, regularizer: Leaves) -> Leaves:
        assert self.constant is not None
        return {name: task[name] + self.constant * regularizer[name] for name in task}


class Add(Modulator):
    """m = 1: the plain gradient of task + regularizer."""

    kind: Literal["add"] = "add"

    @property
    def constant(self) -> float:
        return 1.0


class Constant(Modulator):
    """m = value for every scalar."""

    kind: Literal["constant"] = "constant"
    value: float = Field(default=0.5, ge=0, le=1)

    @property
    def constant(self) -> float:
        return self.value


class Gate(Modulator):
    """ProMetaR's meta-regularizer: m = repeat(sigmoid(W_out W_in [g_task ; g_reg]), `reduction`).

    One pair of matrices per layer's prompt (P x D scalars, row by row): W_in is (P*D/reduction, 2*P*D), W_out
    square, without bias and without non-linearity between them. Each output is repeated for `reduction`
    consecutive scalars.

    Source: ProMetaR; the missing non-linearity is the released code's.
    """

    kind: Literal["gate"] = "gate"
    reduction: int = Field(default=8, ge=1)

    def initialize(self, tokens: Leaves, generator: "torch.Generator") -> Leaves:
        """Return the random matrices of a new gate.

        Raises:
            UserError: the size of a prompt is not a multiple of `reduction`.
        """
        gate: Leaves = {}
        for name, leaf in tokens.items():
            size = leaf.numel()
            if size % self.reduction:
                raise UserError(
                    f"modulator.reduction {self.reduction} does not divide the {size} scalars of {name}"
                )
            hidden = size // self.reduction
            gate[f"{name}.in"] = linear((hidden, 2 * size), 2 * size, like=leaf, generator=generator)
            gate[f"{name}.out"] = linear((hidden, hidden), hidden, like=leaf, generator=generator)
        return gate

    def __call__(self, gate: Leaves, task: Leaves, regularizer: Leaves) -> Leaves:
        import torch

        modulated = {}
        for name, g_task in task.items():
            g_reg = regularizer[name]
            both = torch.cat([g_task.flatten(), g_reg.flatten()])
            strength = torch.sigmoid(gate[f"{name}.out"] @ (gate[f"{name}.in"] @ both))
            rows_task, rows_reg = (g.reshape(-1, self.reduction) for g in (g_task, g_reg))
            modulated[name] = torch.addcmul(rows_task, strength[:, None], rows_reg).view_as(g_task)
        return modulated


class Projection(Modulator):
    """ProGrad: g_task without `share` of its part along g_reg, if the two conflict.

    m = max(0, -share <g_task, g_reg> / |g_reg|^2), one number per layer's prompt. If the product is not
    negative, the regularizer adds nothing. The length of g_reg does not matter.

    Source: "Prompt-aligned Gradient for Prompt Tuning", ICCV 2023 (released: share 1).
    """

    kind: Literal["projection"] = "projection"
    share: float = Field(default=1.0, ge=0, le=1)

    def __call__(self, gate: Leaves, task: Leaves, regularizer: Leaves) -> Leaves:
        import torch

        modulated = {}
        for name, g_task in task.items():
            g_reg = regularizer[name]
            along, square = (g_task * g_reg).sum(), g_reg.square().sum()
            # A prompt that no term depends on has a zero gradient, and no conflict.
            strength = -self.share * along.clamp(max=0) / torch.where(square > 0, square, 1)
            modulated[name] = g_task + strength * g_reg
        return modulated


AnyModulator = Chosen[Add | Constant | Gate | Projection, CustomPart]
