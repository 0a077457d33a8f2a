"""The causal text tower: a shared prefix once a layer, a few suffix tokens a class, EOT alone at the end.

Tokens see only what stands before them. So what follows EOT never matters and is cut; SOS is the same for
all classes *and* all prompts (its states are constants); SOS + context are the same for all classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.backbone.block import (
    KeyValue,
    attention,
    finish,
    normalise_1,
    project,
    project_key_value,
    project_query,
)  # fmt: skip
from prometar.backbone.weights import Clip

Prompts = Mapping[int, Tensor]
"""Learnable tokens by layer, each (P, D). A layer without an entry keeps the tokens that reach it."""


@dataclass(frozen=True)
class TextInput:
    """Token sequences cut into context and suffix; made once a set of classes by `text_input`.

    suffix_CTD: embedded suffix tokens (positions added), padded to the longest; end_C: index of EOT in the
    suffix; context_PD: embedded context where no layer-0 prompt replaces it; sos_LD: SOS at each layer's
    input; mask_TT: causal mask of the suffix.
    """

    suffix_CTD: Tensor
    end_C: Tensor
    context_PD: Tensor
    sos_LD: Tensor
    mask_TT: Tensor


@torch.no_grad()
def text_input(clip: Clip, tokens_CT: Tensor, *, num_context: int = 0) -> TextInput:
    """Cut token ids (C, context length; EOT is the largest id) after SOS, `num_context` tokens, and EOT.

    The context tokens are taken from the first sequence: they must be the same in all when no prompt
    replaces them.
    """
    tokens_CT = tokens_CT.to(clip.device)
    end_C = tokens_CT.argmax(dim=-1)
    start = 1 + num_context
    assert int(end_C.min()) >= start, "EOT must follow the context"
    length = int(end_C.max()) + 1
    embedded = clip.token_embedding[tokens_CT[:, :length]] + clip.text_positions[:length]
    num_suffix = length - start
    mask = torch.full((num_suffix, num_suffix), float("-inf"), dtype=clip.dtype, device=clip.device).triu(1)
    return TextInput(
        embedded[:, start:], end_C - start, embedded[0, 1:start], _sos(clip, embedded[0, :1]), mask
    )


def _sos(clip: Clip, x_1D: Tensor) -> Tensor:
    """SOS attends to itself alone: its state at the input of every layer, (L, D)."""
    states = []
    for block in clip.text.blocks:
        states.append(x_1D)
        own = project_key_value(clip.text, block, normalise_1(block, x_1D))
        x_1D = finish(clip.text, block, x_1D, own.value)
    return torch.cat(states)


def encode_text(clip: Clip, text: TextInput, prompts: Prompts | None = None) -> Tensor:
    """Un-normalised text features (C, E), with `prompts` in place of the context tokens of their layers.

    A layer-0 prompt gets position embeddings like any token; deeper ones replace hidden states as they are.
    """
    prompts = prompts or {}
    num_layers = len(clip.text.blocks)
    context = text.context_PD
    if 0 in prompts:
        context = prompts[0] + clip.text_positions[1 : 1 + len(prompts[0])]
    x_CTD = text.suffix_CTD
    for layer, block in enumerate(clip.text.blocks):
        context = prompts.get(layer, context) if layer else context
        last = layer == num_layers - 1
        prefix = torch.cat([text.sos_LD[layer : layer + 1], context])
        shared, context = _prefix(clip, layer, prefix, needed=not last and layer + 1 not in prompts)
        if last:
            x_CTD = _last(clip, text, x_CTD, shared)
        else:
            query, own = project(clip.text, block, normalise_1(block, x_CTD))
            x_CTD = finish(clip.text, block, x_CTD, attention(query, own, shared, text.mask_TT))
    x_CD = F.layer_norm(x_CTD[:, 0], x_CTD.shape[-1:], clip.ln_final_weight, clip.ln_final_bias)
    return x_CD @ clip.text_projection


def _prefix(clip: Clip, layer: int, prefix_PD: Tensor, *, needed: bool) -> tuple[KeyValue, Tensor]:
    """Keys and values of SOS + context, and the context after this layer where the next one uses it."""
    tower, block = clip.text, clip.text.blocks[layer]
    normalised = normalise_1(block, prefix_PD)
    shared = project_key_value(tower, block, normalised)
    context = prefix_PD[1:]
    if not needed or not len(context):
        return shared, context
    query = project_query(tower, block, normalised[1:])
    num_context = len(context)
    mask = torch.full((num_context, num_context + 1), float("-inf"), dtype=query.dtype, device=query.device)
    attended = attention(query[None], KeyValue(shared.key[None], shared.value[None]), None, mask.triu(2))
    return shared, finish(tower, block, context, attended[0])


def _last(clip: Clip, text: TextInput, x_CTD: Tensor, shared: KeyValue) -> Tensor:
    """The last layer for EOT alone, (C, 1, D)."""
    tower, block = clip.text, clip.text.blocks[-1]
    normalised = normalise_1(block, x_CTD)
    rows = torch.arange(len(x_CTD), device=x_CTD.device)
    end = normalised[rows, text.end_C][:, None]
    # Row EOT of the causal mask, by class: keys behind a short class's EOT are padding.
    mask_C11T = text.mask_TT[text.end_C][:, None, None]
    query = project_query(tower, block, end)
    attended = attention(query, project_key_value(tower, block, normalised), shared, mask_C11T)
    return finish(tower, block, x_CTD[rows, text.end_C][:, None], attended)
