"""Activations of CLIP's MLPs, with first and second derivatives that need few kernel launches."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

QUICK_GELU_FACTOR = 1.702
"""Factor in QuickGELU: x sigmoid(1.702 x)."""

_silu_first_order = torch.ops.aten.silu_backward


def _silu_second_order(r: Tensor, w: Tensor, x: Tensor) -> Tensor:
    """Return r a'(x) + w a''(x), where a'' = 2 s (1 - s) (1 + x / 2 - a), s = sigmoid(x) and a = x s."""
    s = torch.sigmoid(x)
    factor = torch.addcmul(w, w, torch.addcmul(x, x, s, value=-2), value=0.5)
    return torch.add(_silu_first_order(r, x), torch.ops.aten.sigmoid_backward(factor, s), alpha=2)


def _gelu_first_order(g: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    # g can have a leading dimension K, but the float32 CPU kernel requires operands of equal shape.
    return torch.ops.aten.gelu_backward(g, x.expand_as(g), approximate=approximate)


def _gelu_second_order(r: Tensor, w: Tensor, x: Tensor) -> Tensor:
    """Return r a'(x) + w a''(x), where a'' = (2 - x^2) exp(-x^2 / 2) / sqrt(2 pi)."""
    square = x * x
    weighted_bell = torch.exp(square / -2) * w
    return torch.add(_gelu_first_order(r, x), (2 - square) * weighted_bell, alpha=(2 * math.pi) ** -0.5)


def _gelu_tanh_second_order(r: Tensor, w: Tensor, x: Tensor) -> Tensor:
    """Return r a'(x) + w a''(x), where a'' = (1 - h^2) (u' - x h u'^2 + x u'' / 2).

    Here h = tanh(u) and u = sqrt(2 / pi) (x + c x^3).
    """
    root = (2 / math.pi) ** 0.5
    c = 0.044715
    square = x * x
    h = torch.tanh(root * x * (1 + c * square))
    slope = root * (1 + 3 * c * square)
    factor = slope - x * h * slope * slope + 3 * root * c * square
    return torch.addcmul(_gelu_first_order(r, x, approximate="tanh"), (1 - h * h) * factor, w)


def quick_gelu(x: Tensor) -> Tensor:
    """Return x sigmoid(1.702 x) = silu(1.702 x) / 1.702, the activation of OpenAI's CLIP."""
    return x * torch.sigmoid(QUICK_GELU_FACTOR * x)


ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., Tensor]]] = {
    "silu": (F.silu, _silu_first_order, _silu_second_order),
    "gelu": (F.gelu, _gelu_first_order, _gelu_second_order),
    "gelu_tanh": (
        partial(F.gelu, approximate="tanh"),
        partial(_gelu_first_order, approximate="tanh"),
        _gelu_tanh_second_order,
    ),
    "quick_gelu": (
        quick_gelu,
        lambda g, x: _silu_first_order(g, QUICK_GELU_FACTOR * x),
        lambda r, w, x: _silu_second_order(r, QUICK_GELU_FACTOR * w, QUICK_GELU_FACTOR * x),
    ),
}
"""Functions (x) -> a(x), (g, x) -> g a'(x), and (r, w, x) -> r a'(x) + w a''(x) of activations a, by name."""


class Activation:
    """Activation a(x) as a `prometar.clip.function.TokenFunction`. `name` is a key of `ACTIVATIONS`.

    Residuals, cotangents and tangents are x, g and t themselves.
    """

    def __init__(self, name: str) -> None:
        self.value, self._first_order, self._second_order = ACTIVATIONS[name]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.value(x), x

    def vjp(self, x: Tensor, g_K: Tensor) -> Tensor:
        return self._first_order(g_K, x)

    def vjp_for_hvp(self, x: Tensor, g_K: Tensor) -> tuple[Tensor, Tensor]:
        return self._first_order(g_K, x), g_K

    def jvp(self, x: Tensor, t_K: Tensor) -> tuple[Tensor, Tensor]:
        return self._first_order(t_K, x), t_K

    def hvp(self, x: Tensor, g_K: Tensor, t_K: Tensor, r: Tensor) -> Tensor:
        # r a'(x) + w a''(x), the gradient of <r, a(x)> + sum_k <g_k, a'(x) t_k>. w = sum_k g_k t_k.
        (g_1, *others_g), (t_1, *others_t) = g_K.unbind(), t_K.unbind()
        w = g_1 * t_1
        for g, t in zip(others_g, others_t, strict=True):
            w = torch.addcmul(w, g, t)
        return self._second_order(r, w, x)
