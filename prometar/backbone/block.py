"""A residual attention block in which some keys and values may be shared by the whole batch.

Shared tokens (the text prefix, the vision prompts of a layer that replaces them) have no batch dimension:
their keys and values are computed once a layer. That is exact, since they depend on no image and no class.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.backbone.activations import ACTIVATIONS
from prometar.backbone.weights import Block, Tower


class KeyValue(NamedTuple):
    """Keys and values: (B, H, T, K) of own tokens, (H, P, K) of shared ones."""

    key: Tensor
    value: Tensor


def normalise_1(block: Block, x_TD: Tensor) -> Tensor:
    """The block's first LayerNorm, which queries, keys and values are projected from."""
    return F.layer_norm(x_TD, x_TD.shape[-1:], block.ln_1_weight, block.ln_1_bias)


def project(tower: Tower, block: Block, h_TD: Tensor) -> tuple[Tensor, KeyValue]:
    """Queries, and keys with values, of normalised tokens: (..., T, D) to (..., H, T, K)."""
    qkv = F.linear(h_TD, block.in_proj_weight, block.in_proj_bias)
    query, key, value = (_heads(part, tower.num_heads) for part in qkv.chunk(3, dim=-1))
    return query, KeyValue(key, value)


def project_query(tower: Tower, block: Block, h_TD: Tensor) -> Tensor:
    """Queries alone, (..., T, D) to (..., H, T, K)."""
    width = tower.width
    return _heads(F.linear(h_TD, block.in_proj_weight[:width], block.in_proj_bias[:width]), tower.num_heads)


def project_key_value(tower: Tower, block: Block, h_TD: Tensor) -> KeyValue:
    """Keys and values alone, (..., T, D) to (..., H, T, K)."""
    width = tower.width
    kv = F.linear(h_TD, block.in_proj_weight[width:], block.in_proj_bias[width:])
    return KeyValue(*(_heads(part, tower.num_heads) for part in kv.chunk(2, dim=-1)))


def _heads(x_TD: Tensor, num_heads: int) -> Tensor:
    return x_TD.unflatten(-1, (num_heads, -1)).transpose(-3, -2)


def attention(
    query_BHTK: Tensor, own: KeyValue, shared: KeyValue | None = None, mask_TT: Tensor | None = None
) -> Tensor:
    """softmax(q k^T / sqrt(K)) v over shared and own tokens together, (B, H, T, K).

    Written out in matrix products: the fused kernels have no second derivative. Where no gradient is
    recorded, the fused kernel is used. `mask_TT` is added to the scores of the own tokens.
    """
    if not torch.is_grad_enabled():
        return _fused(query_BHTK, own, shared, mask_TT)
    query_BHTK = query_BHTK * query_BHTK.shape[-1] ** -0.5
    scores = query_BHTK @ own.key.transpose(-2, -1)
    if mask_TT is not None:
        scores = scores + mask_TT
    if shared is None:
        return scores.softmax(dim=-1) @ own.value
    num_shared = shared.key.shape[-2]
    scores = torch.cat([torch.einsum("bhtk,hpk->bhtp", query_BHTK, shared.key), scores], dim=-1)
    weights = scores.softmax(dim=-1)
    from_shared = torch.einsum("bhtp,hpk->bhtk", weights[..., :num_shared], shared.value)
    return from_shared + weights[..., num_shared:] @ own.value


def _fused(query: Tensor, own: KeyValue, shared: KeyValue | None, mask: Tensor | None) -> Tensor:
    key, value = own
    if shared is not None:
        key, value = (
            torch.cat([s.expand(len(o), *s.shape), o], dim=-2) for s, o in zip(shared, own, strict=True)
        )
        if mask is not None:
            mask = F.pad(mask, (shared.key.shape[-2], 0))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def finish(tower: Tower, block: Block, x_TD: Tensor, attended_HTK: Tensor) -> Tensor:
    """x + attention output, then the MLP with its residual."""
    attended = attended_HTK.transpose(-3, -2).flatten(-2)
    x_TD = x_TD + F.linear(attended, block.out_proj_weight, block.out_proj_bias)
    h = F.layer_norm(x_TD, x_TD.shape[-1:], block.ln_2_weight, block.ln_2_bias)
    h = ACTIVATIONS[tower.activation](F.linear(h, block.c_fc_weight, block.c_fc_bias))
    return x_TD + F.linear(h, block.c_proj_weight, block.c_proj_bias)
