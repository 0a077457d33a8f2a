"""A residual attention block in pieces, since not every token needs all of it.

Tokens that nothing is read from after the block (prompts that the next layer replaces, all but CLS or EOT
in the last layer) only need keys and values; tokens that all images or texts share are projected once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.backbone.activations import ACTIVATIONS
from prometar.backbone.clip import Block, Tower
from prometar.backbone.norm import layer_norm


class KeyValue(NamedTuple):
    """Keys and values, (..., H, T, K)."""

    key: Tensor
    value: Tensor

    def behind(self, own: KeyValue) -> KeyValue:
        """Those of `own` (B, H, T, K), and behind them, in every row, these (H, P, K)."""
        return KeyValue(
            *(torch.cat([x, p.expand(len(x), *p.shape)], dim=-2) for x, p in zip(own, self, strict=True))
        )


def normalise_1(block: Block, x_TD: Tensor) -> Tensor:
    """The block's first LayerNorm, which queries, keys and values are projected from."""
    return layer_norm(x_TD, block.ln_1_weight, block.ln_1_bias)


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


def finish(tower: Tower, block: Block, x_TD: Tensor, attended_HTK: Tensor) -> Tensor:
    """x + attention output, then the MLP with its residual."""
    attended = attended_HTK.transpose(-3, -2).flatten(-2)
    x_TD = x_TD + F.linear(attended, block.out_proj_weight, block.out_proj_bias)
    h = layer_norm(x_TD, block.ln_2_weight, block.ln_2_bias)
    h = ACTIVATIONS[tower.activation](F.linear(h, block.c_fc_weight, block.c_fc_bias))
    return x_TD + F.linear(h, block.c_proj_weight, block.c_proj_bias)
