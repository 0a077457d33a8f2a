"""Scaling: keeps the cotangents of the meta phase within float16's range.

float16 loses what is smaller than 6e-8 and rounds coarsely below 6e-5. The query loss has a weight (5e-4 in
the released settings), and what it tells of the support gradient an inner rate (5e-4) besides. Both are
taken out of a cotangent before it enters the towers, and put in when it has left them, where all is float32
again. Factors are powers of two: but for float16's range, nothing changes. On the embedded backbone factors
16 times larger or smaller give the same gradients.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from prometar.methods.prompts import Leaves

Number = float | Tensor


@dataclass(frozen=True)
class Scaling:
    """Factors of cotangents in the towers: of losses (`first`), and of gradients (`second`).

    Example:
        >>> Scaling.of(torch.float16, weight=0.1).first, Scaling.of(torch.float32, weight=0.1).first
        (8.0, 1.0)
    """

    first: Number = 1.0
    second: Number = 1.0

    @staticmethod
    def of(dtype: torch.dtype, *, weight: Number = 1.0, rate: Number = 1.0) -> Scaling:
        """For towers in `dtype`, a loss of weight `weight`, and gradients that count `rate` times as much."""
        if dtype is not torch.float16:
            return NONE
        return Scaling(_inverse(weight), _inverse(rate))

    def cotangent(self, loss: Tensor) -> Tensor:
        """What a loss's pullback gets instead of 1."""
        return self.first * torch.ones_like(loss)

    def enter(self, tokens: Leaves) -> Leaves:
        """The tokens as the towers get them, where gradients will be differentiated."""
        return tokens if self is NONE else _scaled(tokens, 1.0, 1 / self.second)

    def leave(self, gradient: Leaves) -> Leaves:
        """The gradient of the loss itself."""
        return gradient if self is NONE else _scaled(gradient, 1 / self.first, self.second / self.first)


NONE = Scaling()


def _scaled(leaves: Mapping[str, Tensor], forward: Number, backward: Number) -> Leaves:
    return {name: _Scale.apply(leaf, forward, backward) for name, leaf in leaves.items()}


def _inverse(number: Number) -> Number:
    """1 / number to the nearest power of two; zero counts as 2^-40."""
    if isinstance(number, Tensor):
        return torch.exp2(-torch.log2(number.clamp_min(2.0**-40)).round())
    return 2.0 ** -round(math.log2(max(number, 2.0**-40)))


class _Scale(Function):
    """x * forward, whose pullback is g * backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, forward: Number, backward: Number) -> Tensor:
        return x * forward

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Number, Number], output: Tensor) -> None:
        backward = inputs[2]
        ctx.constant = None if isinstance(backward, Tensor) else backward
        if isinstance(backward, Tensor):
            ctx.save_for_backward(backward)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        factor = ctx.saved_tensors[0] if ctx.constant is None else ctx.constant
        return grad * factor, None, None
