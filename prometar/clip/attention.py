"""Attention with hand-written first and second derivatives.

torch's fused kernels have no second derivative. For unfused attention, autograd stores a dozen tensors of
shape (queries, keys). This module processes K cotangents or tangents together, in a memory layout that
avoids K copies of the queries, keys, values and probabilities.

Shape letters: B rows of T tokens, N queries, S keys, K cotangents or tangents, H heads of width W, D = H W.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def fused_attention(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, scale: float) -> Tensor:
    """Return softmax(scale q @ k.T + mask) @ v (B, H, N, W), with one choice of backends on all GPUs.

    Without gradients, the backends are flash attention, memory-efficient attention (for float32 and masks)
    and plain operations, in this order. torch prefers cuDNN on some cards (bfloat16 on sm90). cuDNN takes
    tens of milliseconds to plan each new shape, and rounds differently than the kernels of other cards.

    With gradients, GPUs use plain operations, because the fused kernels add up gradients in an order that
    varies between runs. The kernel for CPUs always has the same order.

    Args:
        q: Queries (B, H, N, W).
        k, v: Keys and values (B, H, S, W).
        mask: Tensor (B, 1 or H, N, S) to add to the scores, or None.
        scale: Factor of the queries.
    """
    needs_gradients = torch.is_grad_enabled() and any(each.requires_grad for each in (q, k, v))
    backends = [SDPBackend.MATH] if needs_gradients and q.device.type != "cpu" else _BACKENDS
    with sdpa_kernel(backends, set_priority=True):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


class AttentionResiduals(NamedTuple):
    """Queries q (scaled), keys k, values v, probabilities p and outputs o, each (B H, tokens, ...)."""

    q: Tensor
    k: Tensor
    v: Tensor
    p: Tensor
    o: Tensor


class AttentionCotangents(NamedTuple):
    """Cotangents g (B H, N, K, W) of o, and a (B H, N, K, S). See `Attention`."""

    g: Tensor
    a: Tensor


class AttentionTangents(NamedTuple):
    """Tangents of q (B H, N, K, W), k (B H, K, S, W) and v (B H, S, K, W), and c (B H, N, K, S)."""

    tq: Tensor
    tk: Tensor
    tv: Tensor
    c: Tensor


class Attention:
    """o = softmax(q @ k.T + mask) @ v, from projections (B, T, 3D) to (B, N, D).

    Implements `prometar.clip.function.TokenFunction`. g_i and r are cotangents of o, and tq_i, tk_i and tv_i
    are tangents of q, k and v. p = softmax(q @ k.T + mask), and centered(x) = x - sum(p * x) over the keys.
    The formulas of vjp and jvp omit the index i = 1..K.
        vjp: a = centered(g @ v.T), b = p * a. Gradients of (q, k, v): b @ k, b.T @ q, p.T @ g
        jvp: c = centered(tq @ k.T + q @ tk.T), d = p * c. Tangent of o: d @ v + p @ tv
        hvp: s = p * centered(r @ v.T + sum_i(g_i @ tv_i.T + a_i * c_i)). Gradients of (q, k, v):
            s @ k + sum_i(b_i @ tk_i), s.T @ q + sum_i(b_i.T @ tq_i), p.T @ r + sum_i(d_i.T @ g_i)
    In hvp, a term that is the same for all keys is omitted, because `centered` would remove it.

    Args:
        mask: Tensor (B, 1 or H, N, S) that is added to the scores q @ k.T.
        num_shared: Number of leading tokens of row 0 whose keys and values are prepended to those of every
            row. Row 0 then contains these tokens twice, so the mask must exclude the second copy.
        num_queries: Number N of leading tokens per row that are used as queries. Default: all T tokens.
        scale: Factor to apply to the queries, or 1 if the projection weights already include it.
    """

    def __init__(
        self,
        num_heads: int,
        *,
        scale: float,
        mask: Tensor | None = None,
        num_shared: int = 0,
        num_queries: int | None = None,
    ) -> None:
        self._num_heads = num_heads
        self._scale = scale
        self._mask = mask
        self._num_shared = num_shared
        self._num_queries = num_queries

    def value(self, qkv: Tensor) -> Tensor:
        """Compute the output with torch's fused kernel. Store nothing for derivatives."""
        heads = qkv.unflatten(-1, (3, self._num_heads, -1)).permute(2, 0, 3, 1, 4)
        q = heads[0, :, :, : self._num_queries]
        k, v = self._with_shared(heads[1:])
        return _merge_heads(fused_attention(q, k, v, mask=self._mask, scale=self._scale))

    def forward(self, qkv: Tensor) -> tuple[Tensor, AttentionResiduals]:
        heads = qkv.unflatten(-1, (3, self._num_heads, -1)).permute(2, 0, 3, 1, 4)
        if not self._num_shared:  # if tokens are shared, torch.cat makes k and v contiguous
            heads = heads.contiguous()
        q = heads[0, :, :, : self._num_queries].flatten(0, 1)
        if self._scale != 1:
            q = q * self._scale
        k, v = self._with_shared(heads[1:]).flatten(1, 2)
        if self._mask is None:
            scores = torch.bmm(q, k.mT)
        else:
            mask = self._mask.expand(-1, self._num_heads, -1, -1).flatten(0, 1)
            scores = torch.baddbmm(mask, q, k.mT)
        p = scores.softmax(dim=-1)
        o = torch.bmm(p, v)
        return _merge_heads(o.unflatten(0, (-1, self._num_heads))), AttentionResiduals(q, k, v, p, o)

    def vjp(self, residuals: AttentionResiduals, g_KBND: Tensor) -> Tensor:
        g = self._interleave(g_KBND.unflatten(-1, (self._num_heads, -1)))
        p = residuals.p[:, :, None]
        if len(g_KBND) > 1:
            return self._pull_back(residuals, g, _centered_gv(residuals, g) * p)
        # For K = 1, use torch's kernel. For K > 1, it would need K copies of the probabilities.
        gv = _multiply(g, residuals.v.mT)
        return self._pull_back(residuals, g, torch.ops.aten._softmax_backward_data(gv, p, -1, gv.dtype))

    def vjp_for_hvp(
        self, residuals: AttentionResiduals, g_KBND: Tensor
    ) -> tuple[Tensor, AttentionCotangents]:
        g = self._interleave(g_KBND.unflatten(-1, (self._num_heads, -1)))
        a = _centered_gv(residuals, g)
        return self._pull_back(residuals, g, a * residuals.p[:, :, None]), AttentionCotangents(g, a)

    def _pull_back(self, residuals: AttentionResiduals, g: Tensor, b: Tensor) -> Tensor:
        dk = torch.bmm(b.flatten(2).mT, residuals.q).unflatten(1, (g.shape[2], -1))
        dv = torch.bmm(residuals.p.mT, g.flatten(2)).unflatten(-1, (g.shape[2], -1))
        return self._join(_multiply(b, residuals.k).movedim(2, 0), dk.movedim(1, 0), dv.movedim(2, 0))

    def jvp(self, residuals: AttentionResiduals, t_K: Tensor) -> tuple[Tensor, AttentionTangents]:
        q, k, v, p, _ = residuals
        t = t_K.unflatten(-1, (3, self._num_heads, -1))
        tq = self._interleave(t[:, :, : self._num_queries, 0])
        if self._scale != 1:
            tq = tq * self._scale
        tk = self._with_shared(t[:, :, :, 1].permute(1, 3, 0, 2, 4), row_dim=0)
        tv = self._with_shared(t[:, :, :, 2].permute(1, 3, 0, 2, 4), row_dim=0)
        tk = tk.contiguous().flatten(0, 1)
        tv = tv.transpose(2, 3).contiguous().flatten(0, 1)
        c = _multiply(tq, k.mT)
        c = torch.baddbmm(c.flatten(2), q, tk.flatten(1, 2).mT).view_as(c)
        c = c - torch.matmul(c, p[..., None])
        pushed = _multiply(c * p[:, :, None], v)
        pushed = torch.baddbmm(pushed.flatten(2), p, tv.flatten(2)).view_as(pushed)
        pushed = _merge_heads(pushed.movedim(2, 0).unflatten(1, (-1, self._num_heads)))
        return pushed, AttentionTangents(tq, tk, tv, c)

    def hvp(
        self,
        residuals: AttentionResiduals,
        cotangents: AttentionCotangents,
        tangents: AttentionTangents,
        r_BND: Tensor,
    ) -> Tensor:
        q, k, v, p, _ = residuals
        g, a = cotangents
        tq, tk, tv, c = tangents
        r = r_BND.unflatten(-1, (self._num_heads, -1)).transpose(1, 2).flatten(0, 1)
        x = torch.baddbmm(torch.bmm(r, v.mT), g.flatten(2), tv.flatten(2).mT)
        for a_k, c_k in zip(a.unbind(2), c.unbind(2), strict=True):
            x = torch.addcmul(x, a_k, c_k)
        s = torch.ops.aten._softmax_backward_data(x, p, -1, p.dtype)
        b = a * p[:, :, None]
        d = (c * p[:, :, None]).flatten(1, 2)
        dq = torch.baddbmm(torch.bmm(b.flatten(2), tk.flatten(1, 2)), s, k)
        dk = torch.baddbmm(torch.bmm(b.flatten(1, 2).mT, tq.flatten(1, 2)), s.mT, q)
        dv = torch.baddbmm(torch.bmm(d.mT, g.flatten(1, 2)), p.mT, r)
        return self._join(dq[None], dk[None], dv[None])[0]

    def _interleave(self, x_KBTHW: Tensor) -> Tensor:
        """Return (BH, T, K, W), in which the K cotangents or tangents of a token are adjacent."""
        return x_KBTHW.permute(1, 3, 2, 0, 4).flatten(0, 1).contiguous()

    def _with_shared(self, x: Tensor, *, row_dim: int = 1) -> Tensor:
        """Prepend the shared tokens of row 0 to the tokens of every row. The token dimension is -2."""
        if not self._num_shared:
            return x
        shared = x.narrow(row_dim, 0, 1).narrow(-2, 0, self._num_shared)
        return torch.cat([shared.expand_as(x.narrow(-2, 0, self._num_shared)), x], dim=-2)

    def _join(self, dq: Tensor, dk: Tensor, dv: Tensor) -> Tensor:
        """Join the gradients of queries, keys and values, each (K, BH, tokens, W), into (K, B, T, 3D)."""
        if self._scale != 1:
            dq = dq * self._scale
        # Keys and values also include the shared tokens. Other tokens that are not queries get zeros.
        num_tokens = dk.shape[2] - self._num_shared
        if num_tokens != dq.shape[2]:
            dq = F.pad(dq, (0, 0, 0, num_tokens - dq.shape[2]))
        grads = [x.unflatten(1, (-1, self._num_heads)).transpose(2, 3) for x in (dq, dk, dv)]
        if self._num_shared:
            grads[1:] = [self._merge_shared(grad) for grad in grads[1:]]
        return torch.stack(grads, dim=3).flatten(3)

    def _merge_shared(self, grad_KBSHW: Tensor) -> Tensor:
        """Add the gradients of the prepended tokens to those of row 0 (transpose of `_with_shared`)."""
        num_tokens = grad_KBSHW.shape[2] - self._num_shared
        shared, tokens = grad_KBSHW.split([self._num_shared, num_tokens], dim=2)
        # Safe in place, because the caller does not use `grad_KBSHW` again.
        tokens[:, 0, : self._num_shared].add_(shared.sum(dim=1))
        return tokens


def _merge_heads(x_BHTW: Tensor) -> Tensor:
    return x_BHTW.transpose(-3, -2).flatten(-2)


def _centered_gv(residuals: AttentionResiduals, g: Tensor) -> Tensor:
    """Return centered(g @ v.T). The subtracted sum is the dot product of g and o."""
    return _multiply(g, residuals.v.mT) - torch.matmul(g, residuals.o[..., None])


def _multiply(x: Tensor, matrix: Tensor) -> Tensor:
    """Multiply cotangents or tangents (BH, tokens, K, in) by one matrix (BH, in, out) per row and head."""
    return torch.bmm(x.flatten(1, 2), matrix).unflatten(1, x.shape[1:3])
