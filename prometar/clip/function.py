"""Interface for functions with hand-written derivatives, and its implementations `Projection` and `Norm`."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

EPS = 1e-5  # default epsilon of LayerNorm


class TokenFunction(Protocol):
    """Differentiable function f of tokens x, with Jacobian J and constant weights.

    For first derivatives, call `forward` and `vjp`. For second derivatives, call `forward`, `vjp_for_hvp`,
    `jvp` and `hvp`. With K cotangents g_k, K tangents t_k and one cotangent r, `vjp` and `vjp_for_hvp` return
    J^T g_k, `jvp` returns J t_k, and `hvp` returns the gradient of <r, f(x)> + sum_k <g_k, J t_k> with
    respect to x (for linear f, J^T r). `value` is `forward` without storing tensors. _K: K stacked tensors.
    """

    def value(self, x: Tensor, /) -> Tensor:
        return self.forward(x)

    def forward(self, x: Tensor, /) -> Tensor: ...

    def vjp(self, g_K: Tensor, /) -> Tensor:
        return self.hvp(g_K)  # default for linear f, where `hvp` returns J^T r

    def vjp_for_hvp(self, g_K: Tensor, /) -> Tensor:
        return self.hvp(g_K)  # default for linear f, where `hvp` returns J^T r

    def jvp(self, t_K: Tensor, /) -> Tensor: ...

    def hvp(self, r: Tensor, /) -> Tensor: ...


FunctionCall = Callable[[TokenFunction, Tensor], Tensor]
"""Function that calls one method of a `TokenFunction`, such as `vjp`, with a tensor."""


class Projection(TokenFunction):
    """Linear layer x W + b from width D to width E."""

    def __init__(self, weight_DE: Tensor, bias_E: Tensor | None = None) -> None:
        self._weight_DE, self._bias_E = weight_DE, bias_E

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self._weight_DE
        return y if self._bias_E is None else y + self._bias_E

    def jvp(self, t_K: Tensor) -> Tensor:
        return t_K @ self._weight_DE

    def hvp(self, r: Tensor) -> Tensor:
        return r @ self._weight_DE.T


class Norm:
    """LayerNorm: n(x) = (x - mean) / sigma over the last dimension D, then an optional weight and bias.

    The Jacobian J = (I - 1 1^T / D - n n^T / D) / sigma of n is symmetric, so `vjp` and `jvp` use the
    same kernel. The gradient of sum_k <g_k, J(x) t_k> is

        -(J c + n s) / (D sigma),  c = sum_k <n, t_k> g_k + <n, g_k> t_k,  s = sum_k <g_k, J t_k>

    Float16 inputs are converted to float32, as in torch.autocast, because powers of 1 / sigma could overflow
    in float16 (token embeddings can have sigma < 0.025).
    """

    def __init__(self, weight: Tensor | None, bias: Tensor | None, eps: float = EPS) -> None:
        self._weight, self._bias, self._eps = weight, bias, eps

    def value(self, x: Tensor) -> Tensor:
        normalized = torch.native_layer_norm(_widen(x), x.shape[-1:], None, None, self._eps)[0]
        return self._affine(normalized, x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        self._dtype, self._x = x.dtype, _widen(x)
        results = torch.native_layer_norm(self._x, x.shape[-1:], None, None, self._eps)
        self._n, self._mean, self._rstd = results
        return self._affine(self._n, x.dtype)

    def vjp(self, g_K: Tensor) -> Tensor:
        return self._apply_jacobian_K(_widen(self._weighted(g_K))).to(self._dtype)

    def vjp_for_hvp(self, g_K: Tensor) -> Tensor:
        self._g_K = _widen(self._weighted(g_K))
        return self._apply_jacobian_K(self._g_K).to(self._dtype)

    def jvp(self, t_K: Tensor) -> Tensor:
        self._t_K = _widen(t_K)
        self._pushed_K = self._apply_jacobian_K(self._t_K)
        return self._weighted(self._pushed_K.to(self._dtype))

    def hvp(self, r: Tensor) -> Tensor:
        g, t, n = self._g_K, self._t_K, self._n
        c = torch.addcmul(_dot(n, t) * g, _dot(n, g), t).sum(dim=0)
        s = (g * self._pushed_K).sum(dim=(0, -1)).unsqueeze(-1)
        factor = -1 / n.shape[-1]
        # On a GPU, rstd is float32 even if x is bfloat16, but the kernel requires a cotangent of x's type.
        r = torch.addcmul(_widen(self._weighted(r)), c, self._rstd, value=factor).to(self._x.dtype)
        return torch.addcmul(self._apply_jacobian(r), n, s * self._rstd, value=factor).to(self._dtype)

    def _affine(self, n: Tensor, dtype: torch.dtype) -> Tensor:
        n = n.to(dtype)
        if self._weight is None or self._bias is None:
            return n
        return torch.addcmul(self._bias, n, self._weight)

    def _apply_jacobian_K(self, x_K: Tensor) -> Tensor:
        if len(x_K) == 1:
            return self._apply_jacobian(x_K[0])[None]
        return torch.stack([self._apply_jacobian(x) for x in x_K.unbind()])

    def _apply_jacobian(self, g: Tensor) -> Tensor:
        saved = self._x, self._x.shape[-1:], self._mean, self._rstd, None, None, [True, False, False]
        return torch.ops.aten.native_layer_norm_backward(g, *saved)[0]

    def _weighted(self, x: Tensor) -> Tensor:
        return x if self._weight is None else x * self._weight


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=-1, keepdim=True)


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype is torch.float16 else x
