"""The text tower.

CLIP's is causal and runs all texts as one tree of tokens (`prometar.clip.text_packing`). SOS and the
context, which all classes share, run once. Every class only adds its tokens up to EOT.

In SigLIP's every token attends to all others, padding included, and each text has a row of its own. The
order of its tokens matters only to the positions. The pooled token is first, so that the last layer has one
query per text.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from prometar.clip.block import Layer
from prometar.clip.model import Clip
from prometar.clip.norm import Norm
from prometar.clip.part import Part, Projection, Rows
from prometar.clip.text_packing import pack
from prometar.clip.tower import Pass, Prompts, Slots
from prometar.errors import UserError


@dataclass(frozen=True)
class TextInput:
    """Token sequences packed into R rows of T slots, for a set of classes.

    embedded_RTD: Tokens with positions added. SOS and the context are first.
    mask_R1TS: Added to the scores of the S keys, which are the slots of the row itself, and, before them if
        there are several rows, SOS and the context, which are in the first row.
    end_C: The slot of each EOT, counted row by row.
    If each text has a row of its own, both are None, and the first slot is its end.
    """

    embedded_RTD: Tensor
    mask_R1TS: Tensor | None
    end_C: Tensor | None
    num_start: int
    num_context: int

    @property
    def slots(self) -> Slots:
        """The slots of prompts."""
        if self.mask_R1TS is None:
            return _InEach(1 + self.num_start, self.num_context)
        return _Replaced(self.num_start, self.num_context)


@torch.no_grad()
def text_input(clip: Clip, tokens_CT: Tensor, *, num_context: int = 0) -> TextInput:
    """Pack token ids (C, context length) with `num_context` tokens after SOS for prompts to replace.

    In a tree the context tokens are those of the first sequence. They must be the same in all if no prompt
    replaces them.

    Raises:
        UserError: the context leaves nothing of the class names.
    """
    num_start, tokens = clip.num_start, tokens_CT.tolist()
    start = num_start + num_context
    ends = [ids.index(max(ids)) if clip.causal else len(ids) - 1 for ids in tokens]
    if min(ends) < start + bool(num_context):
        raise UserError(
            f"prompts.text_length {num_context} leaves no room for class names: the backbone reads "
            f"{len(tokens[0])} tokens"
        )
    if not clip.causal:
        last_first_CT = tokens_CT.roll(1, dims=1).to(clip.device)
        embedded_CTD = clip.token_embedding[last_first_CT] + clip.text_positions.roll(1, dims=0)
        return TextInput(embedded_CTD, None, None, num_start, num_context)
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
    embedded_RTD = clip.token_embedding[ids] + clip.text_positions[depth]
    return TextInput(embedded_RTD, mask[:, None], end, num_start, num_context)


def encode_text(clip: Clip, text: TextInput, prompts: Prompts | None = None) -> Tensor:
    """Return un-normalized text features (C, E), with `prompts` as the context tokens of their layers.

    A layer-0 prompt gets position embeddings like any token. Deeper ones replace hidden states as they are.
    """
    prompts = prompts or {}
    if torch.is_grad_enabled():
        return text_pass(clip, text, prompts)[0]
    run = _pass(clip, text, text.mask_R1TS)
    return run.value(text.embedded_RTD, _positioned(clip, text, prompts))


def text_pass(clip: Clip, text: TextInput, prompts: Prompts) -> tuple[Tensor, Pass]:
    """Return `encode_text`, and the pass that gives its derivatives."""
    mask, num_heads = text.mask_R1TS, clip.text.num_heads
    if mask is not None:  # copied for all heads once, and not in every layer
        mask = mask.expand(-1, num_heads, -1, -1).flatten(0, 1).unflatten(0, (-1, num_heads))
    run = _pass(clip, text, mask)
    return run.forward(text.embedded_RTD, _positioned(clip, text, prompts)), run


def _positioned(clip: Clip, text: TextInput, prompts: Prompts) -> Prompts:
    """Add the position embeddings to the prompts of layer 0."""
    num = text.num_context
    assert all(len(prompt) == num for prompt in prompts.values()), "prompts replace the whole context"
    if 0 not in prompts:
        return prompts
    return {**prompts, 0: prompts[0] + clip.text_positions[text.num_start :][:num]}


def _pass(clip: Clip, text: TextInput, mask: Tensor | None) -> Pass:
    tower = clip.text
    # The first keys of row 0 are also the first keys of all other rows.
    num_keys = 0 if mask is None else mask.shape[-1] - mask.shape[-2]
    *blocks, block = tower.blocks
    layers = [Layer(tower, each, mask=mask, num_shared=num_keys) for each in blocks]
    one = None if text.end_C is not None else 1
    layers.append(Layer(tower, block, mask=mask, num_shared=num_keys, ends=text.end_C, num_out=one))
    end: list[Part] = [Rows(), Norm(clip.ln_final_weight, clip.ln_final_bias, tower.eps)]
    if clip.text_projection is not None:
        end.append(Projection(clip.text_projection, clip.text_projection_bias))
    return Pass(layers, text.slots, end=end)


@dataclass(frozen=True)
class _Replaced:
    """Slots of row 0 after the first ones."""

    first: int
    num: int

    def put(self, x: Tensor, prompt: Tensor) -> Tensor:
        flat = x.flatten(-3, -2)
        parts = [flat[..., : self.first, :], prompt, flat[..., self.first + self.num :, :]]
        return torch.cat(parts, dim=-2).unflatten(-2, x.shape[-3:-1])

    def take(self, own: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        slots = own.select(-3, 0).narrow(-2, self.first, self.num)
        prompt = slots.clone()
        slots.zero_()
        return own, prompt


@dataclass(frozen=True)
class _InEach:
    """The same slots of every row."""

    first: int
    num: int

    def put(self, x: Tensor, prompt: Tensor) -> Tensor:
        each = prompt.unsqueeze(-3).expand(*x.shape[:-2], *prompt.shape[-2:])
        return torch.cat([x[..., : self.first, :], each, x[..., self.first + self.num :, :]], dim=-2)

    def take(self, own: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        own = torch.cat([own, rest], dim=-2) if rest.shape[-2] else own
        slots = own.narrow(-2, self.first, self.num)
        prompt = slots.sum(dim=-3)
        slots.zero_()
        return own, prompt
