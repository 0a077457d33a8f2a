"""Interface for functions with hand-written derivatives, and its implementations `Projection` and `Norm`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

EPS = 1e-5  # default epsilon of LayerNorm

Residuals = TypeVar("Residuals")
Cotangents = TypeVar("Cotangents")
Tangents = TypeVar("Tangents")


class TokenFunction(Protocol[Residuals, Cotangents, Tangents]):
    """Differentiable function f of tokens x, with Jacobian J and constant weights.

    All methods are pure functions. `value` returns f(x). `forward` also returns residuals: the tensors that
    derivatives at x require. With K cotangents g_k, K tangents t_k and one cotangent r, the derivatives are

        vjp:          J^T g_k
        vjp_for_hvp:  J^T g_k, and what `hvp` requires of g
        jvp:          J t_k, and what `hvp` requires of t
        hvp:          gradient of <r, f(x)> + sum_k <g_k, J t_k> with respect to x (for linear f, J^T r)

    The suffix _K marks K stacked tensors.
    """

    def value(self, x: Tensor, /) -> Tensor: ...

    def forward(self, x: Tensor, /) -> tuple[Tensor, Residuals]: ...

    def vjp(self, residuals: Residuals, g_K: Tensor, /) -> Tensor: ...

    def vjp_for_hvp(self, residuals: Residuals, g_K: Tensor, /) -> tuple[Tensor, Cotangents]: ...

    def jvp(self, residuals: Residuals, t_K: Tensor, /) -> tuple[Tensor, Tangents]: ...

    def hvp(
        self, residuals: Residuals, cotangents: Cotangents, tangents: Tangents, r: Tensor, /
    ) -> Tensor: ...


AnyFunction = TokenFunction[Any, Any, Any]


def recorded(
    functions: Sequence[Callable[[Tensor], tuple[Any, Any]]],
) -> tuple[list[Callable[[Tensor], Any]], list[Any]]:
    """Split functions that return (result, record) into functions that return the result, and the records.

    The list of records is complete once each function has been called. It has the order of `functions`.

    Example:
        >>> (f, g), records = recorded([lambda x: (x + 1, "f"), lambda x: (2 * x, "g")])
        >>> g(f(torch.tensor(1))), records
        (tensor(4), ['f', 'g'])
    """
    records: list[Any] = [None] * len(functions)

    def call(index: int, x: Tensor) -> Any:
        result, records[index] = functions[index](x)
        return result

    return [partial(call, index) for index in range(len(functions))], records


class Projection:
    """Linear layer x W + b from width D to width E. Its derivatives require no residuals."""

    def __init__(self, weight_DE: Tensor, bias_E: Tensor | None = None) -> None:
        self._weight_DE = weight_DE
        self._bias_E = bias_E

    def value(self, x: Tensor) -> Tensor:
        y = x @ self._weight_DE
        return y if self._bias_E is None else y + self._bias_E

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.value(x), None

    def vjp(self, residuals: None, g_K: Tensor) -> Tensor:
        return g_K @ self._weight_DE.T

    def vjp_for_hvp(self, residuals: None, g_K: Tensor) -> tuple[Tensor, None]:
        return self.vjp(residuals, g_K), None

    def jvp(self, residuals: None, t_K: Tensor) -> tuple[Tensor, None]:
        return t_K @ self._weight_DE, None

    def hvp(self, residuals: None, cotangents: None, tangents: None, r: Tensor) -> Tensor:
        return self.vjp(residuals, r)


class NormResiduals(NamedTuple):
    """Input x in the computation's data type, n(x), mean and 1 / sigma. `dtype`: data type of the input."""

    x: Tensor
    n: Tensor
    mean: Tensor
    rstd: Tensor
    dtype: torch.dtype


class NormTangents(NamedTuple):
    """Tangents t_k, and J t_k without the weight."""

    t_K: Tensor
    pushed_K: Tensor


class Norm:
    """LayerNorm: n(x) = (x - mean) / sigma over the last dimension D, then an optional weight and bias.

    The Jacobian J = (I - 1 1^T / D - n n^T / D) / sigma of n is symmetric, so `vjp` and `jvp` use the
    same kernel. The gradient of sum_k <g_k, J(x) t_k> is

        -(J c + n s) / (D sigma),  c = sum_k <n, t_k> g_k + <n, g_k> t_k,  s = sum_k <g_k, J t_k>

    Float16 inputs are converted to float32, as in torch.autocast, because powers of 1 / sigma could overflow
    in float16 (token embeddings can have sigma < 0.025).
    """

    def __init__(self, weight: Tensor | None, bias: Tensor | None, eps: float = EPS) -> None:
        self._weight = weight
        self._bias = bias
        self._eps = eps

    def value(self, x: Tensor) -> Tensor:
        normalized = torch.native_layer_norm(_widen(x), x.shape[-1:], None, None, self._eps)[0]
        return self._affine(normalized, x.dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, NormResiduals]:
        wide = _widen(x)
        n, mean, rstd = torch.native_layer_norm(wide, x.shape[-1:], None, None, self._eps)
        return self._affine(n, x.dtype), NormResiduals(wide, n, mean, rstd, x.dtype)

    def vjp(self, residuals: NormResiduals, g_K: Tensor) -> Tensor:
        return self.vjp_for_hvp(residuals, g_K)[0]

    def vjp_for_hvp(self, residuals: NormResiduals, g_K: Tensor) -> tuple[Tensor, Tensor]:
        """Return J^T g_k, and the cotangents of n(x)."""
        g_K = _widen(self._weighted(g_K))
        return _apply_jacobian_K(residuals, g_K).to(residuals.dtype), g_K

    def jvp(self, residuals: NormResiduals, t_K: Tensor) -> tuple[Tensor, NormTangents]:
        t_K = _widen(t_K)
        pushed_K = _apply_jacobian_K(residuals, t_K)
        return self._weighted(pushed_K.to(residuals.dtype)), NormTangents(t_K, pushed_K)

    def hvp(self, residuals: NormResiduals, cotangents: Tensor, tangents: NormTangents, r: Tensor) -> Tensor:
        g = cotangents
        t = tangents.t_K
        n = residuals.n
        c = torch.addcmul(_dot(n, t) * g, _dot(n, g), t).sum(dim=0)
        s = (g * tangents.pushed_K).sum(dim=(0, -1)).unsqueeze(-1)
        factor = -1 / n.shape[-1]
        # On a GPU, rstd is float32 even if x is bfloat16, but the kernel requires a cotangent of x's type.
        r = torch.addcmul(_widen(self._weighted(r)), c, residuals.rstd, value=factor).to(residuals.x.dtype)
        whole = torch.addcmul(_apply_jacobian(residuals, r), n, s * residuals.rstd, value=factor)
        return whole.to(residuals.dtype)

    def _affine(self, n: Tensor, dtype: torch.dtype) -> Tensor:
        n = n.to(dtype)
        if self._weight is None or self._bias is None:
            return n
        return torch.addcmul(self._bias, n, self._weight)

    def _weighted(self, x: Tensor) -> Tensor:
        return x if self._weight is None else x * self._weight


def _apply_jacobian_K(residuals: NormResiduals, x_K: Tensor) -> Tensor:
    if len(x_K) == 1:
        return _apply_jacobian(residuals, x_K[0])[None]
    return torch.stack([_apply_jacobian(residuals, x) for x in x_K.unbind()])


def _apply_jacobian(residuals: NormResiduals, g: Tensor) -> Tensor:
    x, _, mean, rstd, _ = residuals
    mask = [True, False, False]  # only the gradient of x
    return torch.ops.aten.native_layer_norm_backward(g, x, x.shape[-1:], mean, rstd, None, None, mask)[0]


class _Normalize(torch.autograd.Function):
    """u = x / |x| and r = 1 / |x|, over the last dimension.

    With cotangents g of u and h of r, the gradient of x is r (g - u (<u, g> + r h)). It consists of
    differentiable operations on both outputs, so second derivatives exist, too.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12)
        u = x / norm
        r = norm.reciprocal()
        ctx.save_for_backward(u, r)
        ctx.set_materialize_grads(False)
        return u, r

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Tensor:
        u, r = ctx.saved_tensors
        g, h = cotangents
        if g is None:
            g = torch.zeros_like(u)
        dot = _dot(u, g)
        if h is not None:
            dot = torch.addcmul(dot, r, h)
        return torch.addcmul(g, u, dot, value=-1) * r


def normalize(x: Tensor) -> Tensor:
    """Return x / |x|, with the bits of `torch.nn.functional.normalize`.

    First and second derivatives need fewer kernels. Each loss normalizes features, and the meta phase
    differentiates losses twice.

    Example:
        >>> normalize(torch.tensor([3.0, 4.0]))
        tensor([0.6000, 0.8000])
    """
    u, _ = _Normalize.apply(x)
    return u


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=-1, keepdim=True)


def _widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype is torch.float16 else x
