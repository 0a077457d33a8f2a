"""The causal text tower: all texts as one tree of tokens, EOT alone at the end.

What follows EOT never matters and is cut. SOS + context, which all classes share, run once; every class only
adds its few tokens behind them (`prometar.backbone.text_packing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prometar.backbone.attention import attention
from prometar.backbone.block import KeyValue, finish, normalise_1, project
from prometar.backbone.clip import Clip
from prometar.backbone.norm import layer_norm
from prometar.backbone.text_packing import pack

Prompts = Mapping[int, Tensor]
"""Learnable tokens by layer, each (P, D). A layer without an entry keeps the tokens that reach it."""


@dataclass(frozen=True)
class TextInput:
    """Token sequences packed into R rows of T slots; made once a set of classes by `text_input`.

    embedded_RTD: tokens with positions added, first of all SOS and the context; mask_R1TS: added to the
    scores of S = num_shared + T keys: SOS and context, then the slots of the own row; end_C: the slot of each
    EOT, rows one behind the other.
    """

    embedded_RTD: Tensor
    mask_R1TS: Tensor
    end_C: Tensor
    num_shared: int


@torch.no_grad()
def text_input(clip: Clip, tokens_CT: Tensor, *, num_context: int = 0) -> TextInput:
    """Pack token ids (C, context length; EOT is the largest id) with `num_context` tokens after SOS shared.

    The context tokens are taken from the first sequence: they must be the same in all when no prompt
    replaces them.
    """
    start = 1 + num_context
    ends = tokens_CT.argmax(dim=-1).tolist()
    assert min(ends) >= start, "EOT must follow the context"
    tokens = tokens_CT.tolist()
    rests = [ids[start : end + 1] for ids, end in zip(tokens, ends, strict=True)]
    rows = pack(tokens[0][:start], rests)
    ids, depth, sees, end = (
        torch.from_numpy(a).to(clip.device) for a in (rows.ids, rows.depth, rows.sees, rows.end)
    )
    mask = torch.zeros(sees.shape, dtype=clip.dtype, device=clip.device).masked_fill_(~sees, float("-inf"))
    return TextInput(clip.token_embedding[ids] + clip.text_positions[depth], mask[:, None], end, start)


def encode_text(clip: Clip, text: TextInput, prompts: Prompts | None = None) -> Tensor:
    """Un-normalised text features (C, E), with `prompts` in place of the context tokens of their layers.

    A layer-0 prompt gets position embeddings like any token; deeper ones replace hidden states as they are.
    """
    prompts = prompts or {}
    tower, x_RTD = clip.text, text.embedded_RTD
    for layer, block in enumerate(tower.blocks):
        if layer in prompts:
            prompt = prompts[layer]
            assert len(prompt) == text.num_shared - 1, "prompts replace the whole context"
            x_RTD = _put(x_RTD, prompt if layer else prompt + clip.text_positions[1 : text.num_shared])
        query, own = project(tower, block, normalise_1(block, x_RTD))
        attended = attention(query, *_with_shared(own, text.num_shared), text.mask_R1TS)
        if layer < len(tower.blocks) - 1:
            x_RTD = finish(tower, block, x_RTD, attended)
    attended_HCK = attended.transpose(0, 1).flatten(1, 2)[:, text.end_C]
    x_CD = finish(tower, block, x_RTD.flatten(0, 1)[text.end_C], attended_HCK)
    x_CD = layer_norm(x_CD, clip.ln_final_weight, clip.ln_final_bias)
    return x_CD @ clip.text_projection


def _put(x_RTD: Tensor, prompt_PD: Tensor) -> Tensor:
    """The tokens with a prompt after SOS."""
    x_SD = x_RTD.flatten(0, 1)
    return torch.cat([x_SD[:1], prompt_PD, x_SD[1 + len(prompt_PD) :]]).view_as(x_RTD)


def _with_shared(own: KeyValue, num_shared: int) -> KeyValue:
    """Keys and values of the shared tokens (they stand in row 0), before those of each row."""
    return KeyValue(*(torch.cat([x[:1, :, :num_shared].expand(len(x), -1, -1, -1), x], dim=-2) for x in own))
