"""Modulators: how the regularizer's gradient joins the task's gradient."""

from dataclasses import dataclass
from typing import Protocol

import torch

from prometar.errors import UserError
from prometar.methods.prompts import Leaves, linear


class Modulator(Protocol):
    """g = g_task + m * g_reg, for every token that the prompts put into the towers."""

    @property
    def constant(self) -> float | None:
        """m where it is one known number: both gradients are then one pass. None, if it is computed."""
        return None

    def init(self, tokens: Leaves, generator: torch.Generator) -> Leaves:
        """The modulator's own learnable leaves: none by default."""
        return {}

    def __call__(self, gate: Leaves, task: Leaves, regularizer: Leaves) -> Leaves: ...


@dataclass(frozen=True)
class Constant(Modulator):
    """m = value for every scalar. 1 is the identity: the plain gradient of task + regularizer."""

    value: float = 1.0

    @property
    def constant(self) -> float | None:
        return self.value

    def __call__(self, gate: Leaves, task: Leaves, regularizer: Leaves) -> Leaves:
        return {name: task[name] + self.value * regularizer[name] for name in task}


@dataclass(frozen=True)
class Gate(Modulator):
    """ProMetaR's meta-regularizer: m = repeat(sigmoid(W_out W_in [g_task ; g_reg]), `reduction`).

    One pair of matrices a layer's prompt (P x D scalars, row by row): W_in is (P*D/reduction, 2*P*D), W_out
    square, no bias, nothing non-linear between them; each output serves `reduction` consecutive scalars.

    Raises:
        UserError: a prompt whose size is not a multiple of `reduction`.

    Source: ProMetaR; the missing non-linearity is the released code's.
    """

    reduction: int = 8

    def init(self, tokens: Leaves, generator: torch.Generator) -> Leaves:
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
        modulated = {}
        for name, g_task in task.items():
            g_reg = regularizer[name]
            both = torch.cat([g_task.flatten(), g_reg.flatten()])
            strength = torch.sigmoid(gate[f"{name}.out"] @ (gate[f"{name}.in"] @ both))
            rows_task, rows_reg = (g.reshape(-1, self.reduction) for g in (g_task, g_reg))
            modulated[name] = torch.addcmul(rows_task, strength[:, None], rows_reg).view_as(g_task)
        return modulated


@dataclass(frozen=True)
class Projection(Modulator):
    """ProGrad: g_task, without `share` of its part along g_reg where the two conflict.

    m = max(0, -share <g_task, g_reg> / |g_reg|^2), one number for a layer's prompt: where the product is not
    negative, the regularizer adds nothing. The length of g_reg, and so the weight of a single term, does not
    matter.

    Source: "Prompt-aligned Gradient for Prompt Tuning", ICCV 2023 (released: share 1).
    """

    share: float = 1.0

    def __call__(self, gate: Leaves, task: Leaves, regularizer: Leaves) -> Leaves:
        modulated = {}
        for name, g_task in task.items():
            g_reg = regularizer[name]
            along, square = (g_task * g_reg).sum(), g_reg.square().sum()
            # A prompt that no term depends on has no direction, and no conflict with it.
            strength = -self.share * along.clamp(max=0) / torch.where(square > 0, square, 1)
            modulated[name] = g_task + strength * g_reg
        return modulated
