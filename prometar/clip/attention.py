"""Attention with hand-written first and second derivatives.

torch's fused kernels have no second derivative. For unfused attention, autograd stores a dozen tensors of
shape (queries, keys). This module processes K cotangents or tangents together, in a memory layout that
avoids K copies of the queries, keys, values and probabilities.

Shape letters: B rows of T tokens, N queries, S keys, K cotangents or tangents, H heads of width W, D = H W.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


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
        self._num_heads, self._scale, self._num_queries = num_heads, scale, num_queries
        self._mask, self._num_shared = mask, num_shared

    def value(self, qkv: Tensor) -> Tensor:
        """Compute the output with torch's fused kernel. Store nothing for derivatives."""
        heads = qkv.unflatten(-1, (3, self._num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = heads[0, :, :, : self._num_queries], *self._with_shared(heads[1:])
        return _merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=self._mask, scale=self._scale))

    def forward(self, qkv: Tensor) -> Tensor:
        self._num_tokens = qkv.shape[1]
        heads = qkv.unflatten(-1, (3, self._num_heads, -1)).permute(2, 0, 3, 1, 4)
        if not self._num_shared:  # if tokens are shared, torch.cat makes k and v contiguous
            heads = heads.contiguous()
        q = heads[0, :, :, : self._num_queries].flatten(0, 1)
        self._q = q if self._scale == 1 else q * self._scale
        self._k, self._v = self._with_shared(heads[1:]).flatten(1, 2)
        if self._mask is None:
            scores = torch.bmm(self._q, self._k.mT)
        else:
            mask = self._mask.expand(-1, self._num_heads, -1, -1).flatten(0, 1)
            scores = torch.baddbmm(mask, self._q, self._k.mT)
        self._p = scores.softmax(dim=-1)
        self._o = torch.bmm(self._p, self._v)
        return _merge_heads(self._o.unflatten(0, (-1, self._num_heads)))

    def vjp(self, g_KBND: Tensor) -> Tensor:
        g = self._interleave(g_KBND.unflatten(-1, (self._num_heads, -1)))
        if len(g_KBND) > 1:
            return self._pull_back(g, self._centered_gv(g) * self._p[:, :, None])
        # For K = 1, use torch's kernel. For K > 1, it would need K copies of the probabilities.
        gv, p = _multiply(g, self._v.mT), self._p[:, :, None]
        return self._pull_back(g, torch.ops.aten._softmax_backward_data(gv, p, -1, gv.dtype))

    def vjp_for_hvp(self, g_KBND: Tensor) -> Tensor:
        self._g = self._interleave(g_KBND.unflatten(-1, (self._num_heads, -1)))
        self._a = self._centered_gv(self._g)
        return self._pull_back(self._g, self._a * self._p[:, :, None])

    def _centered_gv(self, g: Tensor) -> Tensor:
        """Return centered(g @ v.T). The subtracted sum is the dot product of g and o."""
        return _multiply(g, self._v.mT) - torch.matmul(g, self._o[..., None])

    def _pull_back(self, g: Tensor, b: Tensor) -> Tensor:
        dk = torch.bmm(b.flatten(2).mT, self._q).unflatten(1, (g.shape[2], -1))
        dv = torch.bmm(self._p.mT, g.flatten(2)).unflatten(-1, (g.shape[2], -1))
        return self._join(_multiply(b, self._k).movedim(2, 0), dk.movedim(1, 0), dv.movedim(2, 0))

    def jvp(self, t_K: Tensor) -> Tensor:
        t = t_K.unflatten(-1, (3, self._num_heads, -1))
        self._tq = self._interleave(t[:, :, : self._num_queries, 0])
        if self._scale != 1:
            self._tq = self._tq * self._scale
        tk = self._with_shared(t[:, :, :, 1].permute(1, 3, 0, 2, 4), row_dim=0)
        tv = self._with_shared(t[:, :, :, 2].permute(1, 3, 0, 2, 4), row_dim=0)
        self._tk = tk.contiguous().flatten(0, 1)
        self._tv = tv.transpose(2, 3).contiguous().flatten(0, 1)
        c = _multiply(self._tq, self._k.mT)
        c = torch.baddbmm(c.flatten(2), self._q, self._tk.flatten(1, 2).mT).view_as(c)
        self._c = c - torch.matmul(c, self._p[..., None])
        pushed = _multiply(self._c * self._p[:, :, None], self._v)
        pushed = torch.baddbmm(pushed.flatten(2), self._p, self._tv.flatten(2)).view_as(pushed)
        return _merge_heads(pushed.movedim(2, 0).unflatten(1, (-1, self._num_heads)))

    def hvp(self, r_BND: Tensor) -> Tensor:
        p, r = self._p, r_BND.unflatten(-1, (self._num_heads, -1)).transpose(1, 2).flatten(0, 1)
        x = torch.baddbmm(torch.bmm(r, self._v.mT), self._g.flatten(2), self._tv.flatten(2).mT)
        for a, c in zip(self._a.unbind(2), self._c.unbind(2), strict=True):
            x = torch.addcmul(x, a, c)
        s = torch.ops.aten._softmax_backward_data(x, p, -1, p.dtype)
        b, d = self._a * p[:, :, None], (self._c * p[:, :, None]).flatten(1, 2)
        dq = torch.baddbmm(torch.bmm(b.flatten(2), self._tk.flatten(1, 2)), s, self._k)
        dk = torch.baddbmm(torch.bmm(b.flatten(1, 2).mT, self._tq.flatten(1, 2)), s.mT, self._q)
        dv = torch.baddbmm(torch.bmm(d.mT, self._g.flatten(1, 2)), p.mT, r)
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
        if num_others := self._num_tokens - dq.shape[2]:  # tokens that are not queries
            dq = F.pad(dq, (0, 0, 0, num_others))
        grads = [x.unflatten(1, (-1, self._num_heads)).transpose(2, 3) for x in (dq, dk, dv)]
        if self._num_shared:
            grads[1:] = [self._merge_shared(grad) for grad in grads[1:]]
        return torch.stack(grads, dim=3).flatten(3)

    def _merge_shared(self, grad_KBSHW: Tensor) -> Tensor:
        """Add the gradients of the prepended tokens to those of row 0 (transpose of `_with_shared`)."""
        shared, tokens = grad_KBSHW.split([self._num_shared, self._num_tokens], dim=2)
        # Safe in place, because the caller does not use `grad_KBSHW` again.
        tokens[:, 0, : self._num_shared].add_(shared.sum(dim=1))
        return tokens


def _merge_heads(x_BHTW: Tensor) -> Tensor:
    return x_BHTW.transpose(-3, -2).flatten(-2)


def _multiply(x: Tensor, matrix: Tensor) -> Tensor:
    """Multiply cotangents or tangents (BH, tokens, K, in) by one matrix (BH, in, out) per row and head."""
    return torch.bmm(x.flatten(1, 2), matrix).unflatten(1, x.shape[1:3])
