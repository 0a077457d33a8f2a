"""The causal text tower: all texts as one tree of tokens, EOT alone at the end.

What follows EOT never matters and is cut. SOS + context, which all classes share, run once; every class only
adds its few tokens behind them (`prometar.backbone.text_packing`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prometar.backbone.block import Layer
from prometar.backbone.clip import Clip
from prometar.backbone.norm import Norm
from prometar.backbone.text_packing import pack
from prometar.backbone.tower import Pass, Prompts


@dataclass(frozen=True)
class TextInput:
    """Token sequences packed into R rows of T slots; made once a set of classes by `text_input`.

    embedded_RTD: tokens with positions added, first of all SOS and the context; mask_R1TS: added to the
    scores of the S keys: the slots of the own row, and before them, where there are several rows, SOS and
    context, which stand in the first; end_C: the slot of each EOT, rows one behind the other.
    """

    embedded_RTD: Tensor
    mask_R1TS: Tensor
    end_C: Tensor
    num_shared: int

    @property
    def num_keys_of_all(self) -> int:
        """How many keys of row 0 all rows have before their own."""
        return self.mask_R1TS.shape[-1] - self.mask_R1TS.shape[-2]


@torch.no_grad()
def text_input(clip: Clip, tokens_CT: Tensor, *, num_context: int = 0) -> TextInput:
    """Pack token ids (C, context length; EOT is the largest id) with `num_context` tokens after SOS shared.

    The context tokens are taken from the first sequence: they must be the same in all when no prompt
    replaces them.
    """
    start, tokens = 1 + num_context, tokens_CT.tolist()
    ends = [ids.index(max(ids)) for ids in tokens]
    assert min(ends) >= start, "EOT must follow the context"
    rests = [ids[start : end + 1] for ids, end in zip(tokens, ends, strict=True)]
    rows = pack(tokens[0][:start], rests)
    seen = rows.sees
    if len(seen) == 1:
        seen[:, :, start : 2 * start] |= seen[:, :, :start]
        seen = seen[:, :, start:]
    ids, depth, sees, end = (
        torch.from_numpy(a).to(clip.device) for a in (rows.ids, rows.depth, seen, rows.end)
    )
    mask = torch.zeros(sees.shape, dtype=clip.dtype, device=clip.device).masked_fill_(~sees, float("-inf"))
    return TextInput(clip.token_embedding[ids] + clip.text_positions[depth], mask[:, None], end, start)


def encode_text(clip: Clip, text: TextInput, prompts: Prompts | None = None) -> Tensor:
    """Un-normalised text features (C, E), with `prompts` in place of the context tokens of their layers.

    A layer-0 prompt gets position embeddings like any token; deeper ones replace hidden states as they are.
    """
    return text_pass(clip, text, prompts or {}, fused=not torch.is_grad_enabled())[0]


def text_pass(clip: Clip, text: TextInput, prompts: Prompts, *, fused: bool = False) -> tuple[Tensor, Pass]:
    """`encode_text`, and the pass that gives its derivatives."""
    num_prompts = text.num_shared - 1
    assert all(len(prompt) == num_prompts for prompt in prompts.values()), "prompts replace the whole context"
    tower, mask, num_keys = clip.text, text.mask_R1TS, text.num_keys_of_all
    *blocks, block = tower.blocks
    layers = [Layer(tower, each, mask=mask, num_shared=num_keys) for each in blocks]
    layers.append(Layer(tower, block, mask=mask, num_shared=num_keys, ends=text.end_C))
    if 0 in prompts:
        prompts = {**prompts, 0: prompts[0] + clip.text_positions[1 : text.num_shared]}
    end = Norm(clip.ln_final_weight, clip.ln_final_bias)
    one = Pass(layers, _Replaced(num_prompts), end=end, out_DE=clip.text_projection)
    return one.forward(text.embedded_RTD, prompts, fused=fused), one


@dataclass(frozen=True)
class _Replaced:
    """The slots behind SOS, which is the first of row 0."""

    num: int

    def put(self, x: Tensor, prompt: Tensor) -> Tensor:
        flat = x.flatten(-3, -2)
        parts = [flat[..., :1, :], prompt, flat[..., 1 + self.num :, :]]
        return torch.cat(parts, dim=-2).unflatten(-2, x.shape[-3:-1])

    def take(self, own: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        slots = own.select(-3, 0).narrow(-2, 1, self.num)
        prompt = slots.clone()
        slots.zero_()
        return own, prompt
