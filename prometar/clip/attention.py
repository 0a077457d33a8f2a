"""Attention with hand-written first and second derivatives.

torch's fused kernels have no second derivative, and autograd needs a dozen (queries x keys) tensors for one.
Here, all K cotangents or tangents are processed together, in a memory layout that avoids K copies of the
queries, keys, values and probabilities.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


class Attention:
    """o = softmax(q k^T + mask) v, from projections (B, T, 3D) to (B, N, D). The first N tokens are queries.

    The derivatives use the probabilities p and centered(x) = x - <p, x> along the keys:
        vjp: a = centered(g v^T), b = p a; (b k, b^T q, p^T g)
        jvp: c = centered(t_q k^T + q t_k^T), d = p c; d v + p t_v
        hvp: s = p centered(r v^T + sum_k g_k t_v^T + a_k c_k);
            (s k + sum_k b_k t_k, s^T q + sum_k b_k^T t_q, p^T r + sum_k d_k^T g_k)
    Adding a constant to a row of p's cotangent has no effect. This permits centered factors.

    Args:
        mask: Tensor (B, 1 or heads, T, S) that is added to the scores, where S = num_shared + T.
        num_shared: Number of leading tokens of row 0 that are also the first keys of all rows.
        num_queries: Number N of queries. Default: all T tokens.
        scale: Factor of the queries, or 1 if the projection weights contain the factor.
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

    def value(self, qkv_BTD: Tensor) -> Tensor:
        """Return the output of torch's fused kernel. Stores nothing for derivatives."""
        heads = qkv_BTD.unflatten(-1, (3, self._num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = heads[0, :, :, : self._num_queries], *self._with_shared(heads[1:])
        return _merge_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=self._mask, scale=self._scale))

    def forward(self, qkv_BTD: Tensor) -> Tensor:
        self._size = qkv_BTD.shape[:2]
        heads = qkv_BTD.unflatten(-1, (3, self._num_heads, -1)).permute(2, 0, 3, 1, 4)
        if not self._num_shared:  # otherwise `_with_shared` makes the copy
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
            return self._pull_back(g, self._centered(g) * self._p[:, :, None])
        a = _multiply(g, self._v.mT)
        return self._pull_back(g, torch.ops.aten._softmax_backward_data(a, self._p[:, :, None], -1, a.dtype))

    def vjp_for_hvp(self, g_KBND: Tensor) -> Tensor:
        self._g = self._interleave(g_KBND.unflatten(-1, (self._num_heads, -1)))
        self._a = self._centered(self._g)
        return self._pull_back(self._g, self._a * self._p[:, :, None])

    def _centered(self, g: Tensor) -> Tensor:
        return _multiply(g, self._v.mT) - torch.matmul(g, self._o[..., None])

    def _pull_back(self, g: Tensor, b: Tensor) -> Tensor:
        num = g.shape[2]
        dq, dk = _multiply(b, self._k), torch.bmm(b.flatten(2).mT, self._q).unflatten(1, (num, -1))
        dv = torch.bmm(self._p.mT, g.flatten(2)).unflatten(-1, (num, -1))
        return self._join(dq.movedim(2, 0), dk.movedim(1, 0), dv.movedim(2, 0))

    def jvp(self, t_KBTD: Tensor) -> Tensor:
        t = t_KBTD.unflatten(-1, (3, self._num_heads, -1))
        self._tq = self._interleave(t[:, :, : self._num_queries, 0])
        if self._scale != 1:
            self._tq = self._tq * self._scale
        tk = self._with_shared(t[:, :, :, 1].permute(1, 3, 0, 2, 4), row=0)
        tv = self._with_shared(t[:, :, :, 2].permute(1, 3, 0, 2, 4), row=0)
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

    def _interleave(self, x_KBTHD: Tensor) -> Tensor:
        """Make the cotangents or tangents of a token adjacent: (BH, T, K, D)."""
        return x_KBTHD.permute(1, 3, 2, 0, 4).flatten(0, 1).contiguous()

    def _with_shared(self, x: Tensor, *, row: int = 1) -> Tensor:
        """Prepend the shared tokens of row 0 to the tokens (second to last dimension) of every row."""
        if not self._num_shared:
            return x
        shared = x.narrow(row, 0, 1).narrow(-2, 0, self._num_shared)
        return torch.cat([shared.expand_as(x.narrow(-2, 0, self._num_shared)), x], dim=-2)

    def _join(self, dq: Tensor, dk: Tensor, dv: Tensor) -> Tensor:
        """Join queries, keys and values, each (K, BH, tokens, D), to (K, B, T, 3D)."""
        if self._scale != 1:
            dq = dq * self._scale
        if missing := self._size[1] - dq.shape[2]:
            dq = F.pad(dq, (0, 0, 0, missing))
        parts = [x.unflatten(1, (-1, self._num_heads)).transpose(2, 3) for x in (dq, dk, dv)]
        if self._num_shared:
            parts[1:] = [self._without_shared(part) for part in parts[1:]]
        return torch.stack(parts, dim=3).flatten(3)

    def _without_shared(self, x_KBSHD: Tensor) -> Tensor:
        """Apply the transpose of `_with_shared` to cotangents."""
        shared, tokens = x_KBSHD.split([self._num_shared, self._size[1]], dim=2)
        # In place, because no other tensor uses this memory.
        tokens[:, 0, : self._num_shared].add_(shared.sum(dim=1))
        return tokens


def _merge_heads(x_BHTK: Tensor) -> Tensor:
    return x_BHTK.transpose(-3, -2).flatten(-2)


def _multiply(x_NTKD: Tensor, y_NDS: Tensor) -> Tensor:
    """Multiply the K cotangents or tangents of each token by one matrix."""
    return torch.bmm(x_NTKD.flatten(1, 2), y_NDS).unflatten(1, x_NTKD.shape[1:3])
