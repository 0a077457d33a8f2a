"""Activations of CLIP's MLPs.

SiLU is written out to its second derivative: torch has one kernel each for it and for its derivative, but
its second derivative, and all of QuickGELU, are chains of operations that each keep their inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

QUICK = 1.702
"""QuickGELU is x sigmoid(1.702 x)."""


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), the activation of OpenAI's weights."""
    return x * torch.sigmoid(QUICK * x)


class _Silu(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return F.silu(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return _SiluBackward.apply(grad, x)


class _SiluBackward(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, x: Tensor) -> Tensor:
        return torch.ops.aten.silu_backward(grad, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor]:
        grad, x = ctx.saved_tensors
        s = torch.sigmoid(x)
        second = s * (1 - s) * (2 + x * (1 - 2 * s))
        return torch.ops.aten.silu_backward(grad_out, x), grad_out * grad * second


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return _Silu.apply(x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu, "silu": silu}
