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
    backends = _BACKENDS
    if needs_gradients and q.device.type != "cpu":
        backends = [SDPBackend.MATH]
    with sdpa_kernel(backends, set_priority=True):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def num_shared_keys(mask: Tensor | None) -> int:
    """Return the number of shared keys S - T of a mask (..., T, S), or 0 without a mask.

    The first S - T keys are the shared tokens of row 0. The other T keys are the tokens of the row.
    """
    if mask is None:
        return 0
    num_queries, num_keys = mask.shape[-2:]
    return num_keys - num_queries


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
        heads = self._split_heads(qkv, num_parts=3).permute(2, 0, 3, 1, 4)
        q = heads[0, :, :, : self._num_queries]
        k, v = self._with_shared(heads[1:], row_dim=1, token_dim=-2)
        o = fused_attention(q, k, v, mask=self._mask, scale=self._scale)
        return o.transpose(1, 2).flatten(2)

    def forward(self, qkv: Tensor) -> tuple[Tensor, AttentionResiduals]:
        num_rows, num_tokens, _ = qkv.shape
        heads = self._split_heads(qkv, num_parts=3).permute(2, 0, 3, 1, 4)
        if self._num_shared:  # torch.cat makes k and v contiguous
            q = heads[0].flatten(0, 1)
            k, v = self._with_shared(heads[1:], row_dim=1, token_dim=-2).flatten(1, 2)
        else:
            q, k, v = heads.reshape(3, num_rows * self._num_heads, num_tokens, -1)
        if self._num_queries is not None:
            q = q[:, : self._num_queries]
        if self._scale != 1:
            q = q * self._scale
        if self._mask is None:
            scores = torch.bmm(q, k.mT)
        else:
            mask = self._mask.expand(-1, self._num_heads, -1, -1).flatten(0, 1)
            scores = torch.baddbmm(mask, q, k.mT)
        p = scores.softmax(dim=-1)
        o = torch.bmm(p, v)
        merged = o.view(num_rows, self._num_heads, *o.shape[1:]).transpose(1, 2).flatten(2)
        return merged, AttentionResiduals(q, k, v, p, o)

    def vjp(self, residuals: AttentionResiduals, g_KBND: Tensor) -> Tensor:
        g = self._interleave(self._split_heads(g_KBND))
        p = residuals.p.unsqueeze(2)
        if len(g_KBND) > 1:
            return self._pull_back(residuals, g, _centered_gv(residuals, g) * p)
        # For K = 1, use torch's kernel. For K > 1, it would need K copies of the probabilities.
        gv = _multiply(g, residuals.v.mT)
        return self._pull_back(residuals, g, torch.ops.aten._softmax_backward_data(gv, p, -1, gv.dtype))

    def vjp_for_hvp(
        self, residuals: AttentionResiduals, g_KBND: Tensor
    ) -> tuple[Tensor, AttentionCotangents]:
        g = self._interleave(self._split_heads(g_KBND))
        a = _centered_gv(residuals, g)
        return self._pull_back(residuals, g, a * residuals.p.unsqueeze(2)), AttentionCotangents(g, a)

    def _pull_back(self, residuals: AttentionResiduals, g: Tensor, b: Tensor) -> Tensor:
        q, k, _, p, _ = residuals
        num_all, num_queries, num_cotangents, num_keys = b.shape
        rows_and_heads = (num_all // self._num_heads, self._num_heads)
        dk = torch.bmm(b.view(num_all, num_queries, -1).mT, q)
        dv = torch.bmm(p.mT, g.view(num_all, num_queries, -1))
        return self._join(
            torch.bmm(b.view(num_all, -1, num_keys), k)  # not a variable, so that `_join` can free it
            .view(*rows_and_heads, num_queries, num_cotangents, -1)
            .permute(3, 0, 2, 1, 4),
            dk.view(*rows_and_heads, num_cotangents, num_keys, -1).permute(2, 0, 3, 1, 4),
            dv.view(*rows_and_heads, num_keys, num_cotangents, -1).permute(3, 0, 2, 1, 4),
        )

    def jvp(self, residuals: AttentionResiduals, t_K: Tensor) -> tuple[Tensor, AttentionTangents]:
        q, k, v, p, _ = residuals
        num_all, num_queries, num_keys = p.shape
        num_tangents = len(t_K)
        tq, tk, tv = self._split_heads(t_K, num_parts=3).unbind(3)
        if self._num_queries is not None:
            tq = tq[:, :, :num_queries]
        tq = self._interleave(tq)
        if self._scale != 1:
            tq = tq * self._scale
        tk = self._with_shared(tk.permute(1, 3, 0, 2, 4), row_dim=0, token_dim=3)
        tk = tk.reshape(num_all, num_tangents, num_keys, -1).contiguous()
        tv = self._with_shared(tv.permute(1, 3, 2, 0, 4), row_dim=0, token_dim=2)
        tv = tv.reshape(num_all, num_keys, num_tangents, -1).contiguous()
        c = torch.bmm(tq.view(num_all, num_queries * num_tangents, -1), k.mT)
        c = c.view(num_all, num_queries, -1)
        c = torch.baddbmm(c, q, tk.view(num_all, num_tangents * num_keys, -1).mT)
        c = c.view(num_all, num_queries, num_tangents, num_keys)
        c = c - _multiply_vectors(c, p)
        pushed = _multiply(c * p.unsqueeze(2), v).view(num_all, num_queries, -1)
        pushed = torch.baddbmm(pushed, p, tv.view(num_all, num_keys, -1))
        pushed = pushed.view(-1, self._num_heads, num_queries, num_tangents, v.shape[-1])
        return pushed.permute(3, 0, 2, 1, 4).flatten(3), AttentionTangents(tq, tk, tv, c)

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
        num_all, num_queries, num_keys = p.shape
        by_token = (num_all, num_queries, -1)
        by_token_and_tangent = (num_all, -1, num_keys)
        width = v.shape[-1]
        r = self._split_heads(r_BND).transpose(1, 2).flatten(0, 1)
        x = torch.baddbmm(torch.bmm(r, v.mT), g.view(by_token), tv.view(num_all, num_keys, -1).mT)
        for a_k, c_k in zip(a.unbind(2), c.unbind(2), strict=True):
            x = torch.addcmul(x, a_k, c_k)
        s = torch.ops.aten._softmax_backward_data(x, p, -1, p.dtype)
        b = a * p.unsqueeze(2)
        d = (c * p.unsqueeze(2)).view(by_token_and_tangent)
        dq = torch.baddbmm(torch.bmm(b.view(by_token), tk.view(num_all, -1, width)), s, k)
        dk = torch.bmm(b.view(by_token_and_tangent).mT, tq.view(num_all, -1, width))
        dk = torch.baddbmm(dk, s.mT, q)
        dv = torch.baddbmm(torch.bmm(d.mT, g.view(num_all, -1, width)), p.mT, r)
        return self._join(self._with_rows(dq), self._with_rows(dk), self._with_rows(dv))

    def _with_rows(self, x: Tensor) -> Tensor:
        """Return (B, tokens, H, W) from (BH, tokens, W)."""
        return x.view(-1, self._num_heads, *x.shape[1:]).transpose(1, 2)

    def _split_heads(self, x: Tensor, *, num_parts: int = 1) -> Tensor:
        """Split the last dimension into (H, W), or into (3, H, W) for queries, keys and values."""
        parts = () if num_parts == 1 else (num_parts,)
        return x.reshape(*x.shape[:-1], *parts, self._num_heads, -1)

    def _interleave(self, x_KBTHW: Tensor) -> Tensor:
        """Return (BH, T, K, W), in which the K cotangents or tangents of a token are adjacent."""
        return x_KBTHW.permute(1, 3, 2, 0, 4).flatten(0, 1).contiguous()

    def _with_shared(self, x: Tensor, *, row_dim: int, token_dim: int) -> Tensor:
        """Prepend the shared tokens of row 0 to the tokens of every row."""
        if not self._num_shared:
            return x
        first_tokens = x.narrow(token_dim, 0, self._num_shared)
        shared = first_tokens.narrow(row_dim, 0, 1).expand_as(first_tokens)
        return torch.cat([shared, x], dim=token_dim)

    def _join(self, dq: Tensor, dk: Tensor, dv: Tensor) -> Tensor:
        """Join the gradients (..., B, tokens, H, W) of queries, keys and values into (..., B, T, 3D)."""
        if self._scale != 1:
            dq = dq * self._scale
        # Keys and values also include the shared tokens. Other tokens that are not queries get zeros.
        num_others = dk.shape[-3] - self._num_shared - dq.shape[-3]
        if num_others:
            dq = F.pad(dq, (0, 0, 0, 0, 0, num_others))
        if self._num_shared:
            dk = self._merge_shared(dk)
            dv = self._merge_shared(dv)
        return torch.stack([dq, dk, dv], dim=-3).flatten(-3)

    def _merge_shared(self, grad: Tensor) -> Tensor:
        """Add the gradients of the prepended tokens to those of row 0 (transpose of `_with_shared`)."""
        num_tokens = grad.shape[-3] - self._num_shared
        shared, tokens = grad.split([self._num_shared, num_tokens], dim=-3)
        # Safe in place, because the caller does not use `grad` again.
        tokens.select(-4, 0).narrow(-3, 0, self._num_shared).add_(shared.sum(dim=-4))
        return tokens


def _centered_gv(residuals: AttentionResiduals, g: Tensor) -> Tensor:
    """Return centered(g @ v.T). The subtracted sum is the dot product of g and o."""
    num_all, num_tokens, num_stacked, width = g.shape
    sums = _multiply_vectors(g, residuals.o).view(num_all, -1, 1)
    centered = torch.baddbmm(sums, g.view(num_all, -1, width), residuals.v.mT, beta=-1)
    return centered.view(num_all, num_tokens, num_stacked, -1)


def _multiply(x: Tensor, matrix: Tensor) -> Tensor:
    """Multiply cotangents or tangents (BH, tokens, K, in) by one matrix (BH, in, out) per row and head."""
    num_all, num_tokens, num_stacked, width = x.shape
    product = torch.bmm(x.view(num_all, num_tokens * num_stacked, width), matrix)
    return product.view(num_all, num_tokens, num_stacked, -1)


def _multiply_vectors(x: Tensor, vectors: Tensor) -> Tensor:
    """Return the dot products (BH, tokens, K, 1) of x (BH, tokens, K, in) and vectors (BH, tokens, in)."""
    num_all, num_tokens, num_stacked, width = x.shape
    matrices = x.view(num_all * num_tokens, num_stacked, width)
    products = torch.bmm(matrices, vectors.view(num_all * num_tokens, width, 1))
    return products.view(num_all, num_tokens, num_stacked, 1)
