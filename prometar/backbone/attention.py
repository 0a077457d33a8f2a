"""Attention, written out to its second derivative.

torch's fused kernels have no second derivative, and products and a softmax keep a dozen tensors of queries x
keys for it. Here q, k, v, the probabilities and the cotangents are kept, the rest is made again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function


def attention(query_BHTK: Tensor, key_BHSK: Tensor, value_BHSK: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(K) + mask) v, (B, H, T, K); `mask` broadcasts to (B, H, T, S).

    Differentiable twice. Where no gradient is recorded, the fused kernel is used.
    """
    if not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query_BHTK, key_BHSK, value_BHSK, attn_mask=mask)
    attended, _ = _Attention.apply(query_BHTK * query_BHTK.shape[-1] ** -0.5, key_BHSK, value_BHSK, mask)
    return attended


class _Attention(Function):
    """o = p v with p = softmax(q k^T + mask); p is an output only to be kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        scores = q @ k.mT
        p = (scores if mask is None else scores + mask).softmax(dim=-1)
        return p @ v, p

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        q, k, v, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None
        return (*_AttentionBackward.apply(grad, *ctx.saved_tensors), None)


class _AttentionBackward(Function):
    """dq = b k, dk = b^T q, dv = p^T g with b = p * centred(g v^T), where centred(x) = x - sum(p * x)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, q: Tensor, k: Tensor, v: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b = _through_softmax(g @ v.mT, p)
        return b @ k, b.mT @ q, p.mT @ g

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of <b k, dq> + <b^T q, dk> + <p^T g, dv>, with p as a function of q and k."""
        g, q, k, v, p = ctx.saved_tensors
        a = _centred(g @ v.mT, p)
        c = _centred(dq @ k.mT + q @ dk.mT, p)
        b, d = p * a, p * c
        # A row's constant in p's cotangent does not get through the softmax, so centred factors serve.
        s = _through_softmax(g @ dv.mT + a * c, p)
        return p @ dv + d @ v, b @ dk + s @ k, b.mT @ dq + s.mT @ q, d.mT @ g, None


def _centred(x: Tensor, p: Tensor) -> Tensor:
    return x - (p * x).sum(dim=-1, keepdim=True)


def _through_softmax(cotangent: Tensor, p: Tensor) -> Tensor:
    """p * centred(cotangent), in one kernel."""
    return torch.ops.aten._softmax_backward_data(cotangent, p, -1, p.dtype)
