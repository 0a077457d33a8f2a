"""The interface of the towers' parts: a value and its hand-written derivatives."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class Part(Protocol):
    """A differentiable function f of tokens x whose weights are constants.

    After `forward`, `vjp` gives J^T g_k for K cotangents. After `differentiable_vjp`, which gives the same,
    `jvp` gives J t_k for K tangents, and then `hvp` the gradient of <r, f(x)> + sum_k <g_k, J t_k>.
    By default f is linear: its derivative is f itself, and `hvp` is its transpose.
    """

    def forward(self, x: Tensor) -> Tensor: ...

    def vjp(self, g_K: Tensor) -> Tensor:
        return self.hvp(g_K)

    def differentiable_vjp(self, g_K: Tensor) -> Tensor:
        return self.hvp(g_K)

    def jvp(self, t_K: Tensor) -> Tensor: ...

    def hvp(self, r: Tensor) -> Tensor: ...


Reverse = Callable[[Part, Tensor], Tensor]
"""One of the reverse passes through a part: `vjp`, `differentiable_vjp` or `hvp`."""


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
