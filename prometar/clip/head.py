"""What makes features of a tower's last tokens, as parts with derivatives like those of a block.

Linear parts are their own derivative; their second one has no term of its own.
"""

from typing import Protocol

from torch import Tensor


class Part(Protocol):
    """Like `prometar.clip.norm.Norm`. Those below are linear: cotangents are pulled as `second` does."""

    def forward(self, x: Tensor) -> Tensor: ...

    def pull(self, g_K: Tensor, *, again: bool) -> Tensor:
        return self.second(g_K)

    def push(self, t_K: Tensor) -> Tensor: ...

    def second(self, r: Tensor) -> Tensor: ...


class Rows(Part):
    """(..., B, T, D) to (..., B T, D): the tokens that are left are the features."""

    def forward(self, x: Tensor) -> Tensor:
        self._size = x.shape[:-1]
        return x.flatten(0, -2)

    def push(self, t_K: Tensor) -> Tensor:
        return t_K.flatten(1, -2)

    def second(self, r: Tensor) -> Tensor:
        return r.unflatten(-2, self._size)


class Projection(Part):
    """x W + b."""

    def __init__(self, weight_DE: Tensor, bias_E: Tensor | None) -> None:
        self._weight_DE, self._bias_E = weight_DE, bias_E

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self._weight_DE
        return y if self._bias_E is None else y + self._bias_E

    def push(self, t_K: Tensor) -> Tensor:
        return t_K @ self._weight_DE

    def second(self, r: Tensor) -> Tensor:
        return r @ self._weight_DE.T


def projection(weight_DE: Tensor | None, bias_E: Tensor | None = None) -> list[Part]:
    """A projection, if there is one."""
    return [] if weight_DE is None else [Projection(weight_DE, bias_E)]
