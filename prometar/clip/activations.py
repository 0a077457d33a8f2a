"""Activations a(x) of CLIP's MLPs, with first and second derivatives that need few kernel launches.

For each activation, a first-order function returns g a'(x), where g is a cotangent of a. A second-order
function returns r a'(x) + w a''(x), where r is a cotangent of a, and w is the sum over k of the products of
cotangents g_k and tangents t_k.
"""

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
    # factor = w (1 + x / 2 - a), and sigmoid_backward(f, s) = f s (1 - s)
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
    slope = root * (1 + 3 * c * square)  # u'
    factor = slope - x * h * slope * slope
    factor = factor + 3 * root * c * square  # x u'' / 2
    return torch.addcmul(_gelu_first_order(r, x, approximate="tanh"), (1 - h * h) * factor, w)


def quick_gelu(x: Tensor) -> Tensor:
    """Return x sigmoid(1.702 x) = silu(1.702 x) / 1.702, the activation of OpenAI's CLIP."""
    return x * torch.sigmoid(QUICK_GELU_FACTOR * x)


# With k = 1.702, a(x) = silu(k x) / k, so a' = silu'(k x) and a'' = k silu''(k x).
def _quick_gelu_first_order(g: Tensor, x: Tensor) -> Tensor:
    return _silu_first_order(g, QUICK_GELU_FACTOR * x)


def _quick_gelu_second_order(r: Tensor, w: Tensor, x: Tensor) -> Tensor:
    return _silu_second_order(r, QUICK_GELU_FACTOR * w, QUICK_GELU_FACTOR * x)


ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., Tensor]]] = {
    "silu": (F.silu, _silu_first_order, _silu_second_order),
    "gelu": (F.gelu, _gelu_first_order, _gelu_second_order),
    "gelu_tanh": (
        partial(F.gelu, approximate="tanh"),
        partial(_gelu_first_order, approximate="tanh"),
        _gelu_tanh_second_order,
    ),
    "quick_gelu": (quick_gelu, _quick_gelu_first_order, _quick_gelu_second_order),
}
"""Functions (x) -> a(x), (g, x) -> g a'(x), and (r, w, x) -> r a'(x) + w a''(x) of activations a, by name."""


class Activation:
    """Activation a(x) as a `prometar.clip.function.TokenFunction`.

    What `TokenFunction` calls residuals, cotangents and tangents are here simply x, g_K and t_K. Nothing else
    is stored.

    Args:
        name: Key of `ACTIVATIONS`.
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
        # Adding one product at a time avoids K stacked products.
        cotangents = g_K.unbind()
        tangents = t_K.unbind()
        w = cotangents[0] * tangents[0]
        for g, t in zip(cotangents[1:], tangents[1:], strict=True):
            w = torch.addcmul(w, g, t)
        return self._second_order(r, w, x)
