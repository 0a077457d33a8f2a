"""The interface of the towers' parts: a value and its hand-written derivatives. LayerNorm and projections."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

EPS = 1e-5


class Part(Protocol):
    """A differentiable function f of tokens x whose weights are constants.

    After `forward`, `vjp` gives J^T g_k for K cotangents. After `differentiable_vjp`, which gives the same,
    `jvp` gives J t_k for K tangents, and then `hvp` the gradient of <r, f(x)> + sum_k <g_k, J t_k>.
    `value` is `forward` without storing anything for them.
    By default f is linear: its derivative is f itself, and `hvp` is its transpose.
    """

    def value(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def forward(self, x: Tensor) -> Tensor: ...

    def vjp(self, g_K: Tensor) -> Tensor:
        return self.hvp(g_K)

    def differentiable_vjp(self, g_K: Tensor) -> Tensor:
        return self.hvp(g_K)

    def jvp(self, t_K: Tensor) -> Tensor: ...

    def hvp(self, r: Tensor) -> Tensor: ...


Through = Callable[[Part, Tensor], Tensor]
"""A pass through a part: one of its methods."""


class Projection(Part):
    """x W + b."""

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
    """n(x) = (x - mean) / sigma over the last dimension, times a weight plus a bias if there are any.

    Its derivative J = (1 - 1 1^T / D - n n^T / D) / sigma is its own transpose, so that `vjp` and `jvp` are
    one kernel. The gradient of sum_k <g_k, J(x) t_k> is

        -(J c + n s) / (D sigma),  c = sum_k <n, t_k> g_k + <n, g_k> t_k,  s = sum_k <g_k, J t_k>

    except for the sigma in J. In float16 the cube of 1 / sigma overflows for sigma below 0.025, which token
    embeddings have. Float16 is therefore computed in float32, as by torch.autocast.
    """

    def __init__(self, weight: Tensor | None, bias: Tensor | None, eps: float = EPS) -> None:
        self._weight, self._bias, self._eps = weight, bias, eps

    def value(self, x: Tensor) -> Tensor:
        """Return the value without storing anything for derivatives."""
        return self._affine(
            torch.native_layer_norm(_wide(x), x.shape[-1:], None, None, self._eps)[0], x.dtype
        )

    def forward(self, x: Tensor) -> Tensor:
        self._dtype, self._x = x.dtype, _wide(x)
        self._n, self._mean, self._rstd = torch.native_layer_norm(
            self._x, x.shape[-1:], None, None, self._eps
        )
        return self._affine(self._n, x.dtype)

    def vjp(self, g_K: Tensor) -> Tensor:
        return self._each(_wide(self._weighted(g_K))).to(self._dtype)

    def differentiable_vjp(self, g_K: Tensor) -> Tensor:
        self._g_K = _wide(self._weighted(g_K))
        return self._each(self._g_K).to(self._dtype)

    def jvp(self, t_K: Tensor) -> Tensor:
        self._t_K = _wide(t_K)
        self._pushed_K = self._each(self._t_K)
        return self._weighted(self._pushed_K.to(self._dtype))

    def hvp(self, r: Tensor) -> Tensor:
        g, t, n = self._g_K, self._t_K, self._n
        c = torch.addcmul(_dot(n, t) * g, _dot(n, g), t).sum(dim=0)
        s = (g * self._pushed_K).sum(dim=(0, -1)).unsqueeze(-1)
        minus = -1 / n.shape[-1]
        # On a GPU sigma is float32 where x is bfloat16, and its kernel takes a cotangent like x alone.
        r = torch.addcmul(_wide(self._weighted(r)), c, self._rstd, value=minus).to(self._x.dtype)
        pulled = self._jacobian(r)
        return torch.addcmul(pulled, n, s * self._rstd, value=minus).to(self._dtype)

    def _affine(self, n: Tensor, dtype: torch.dtype) -> Tensor:
        n = n.to(dtype)
        if self._weight is None or self._bias is None:
            return n
        return torch.addcmul(self._bias, n, self._weight)

    def _each(self, x_K: Tensor) -> Tensor:
        if len(x_K) == 1:
            return self._jacobian(x_K[0])[None]
        return torch.stack([self._jacobian(x) for x in x_K.unbind()])

    def _jacobian(self, g: Tensor) -> Tensor:
        stated = self._x, self._x.shape[-1:], self._mean, self._rstd, None, None, [True, False, False]
        return torch.ops.aten.native_layer_norm_backward(g, *stated)[0]

    def _weighted(self, x: Tensor) -> Tensor:
        return x if self._weight is None else x * self._weight


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=-1, keepdim=True)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype is torch.float16 else x
