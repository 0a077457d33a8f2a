"""The text tower.

CLIP's is causal and runs all texts as one tree of tokens (`prometar.clip.text_packing`). SOS and the
context, which all classes share, run once. Every class only adds its tokens up to EOT.

In SigLIP's every token attends to all others, padding included, and each text has a row of its own. The
order of its tokens matters only to the positions. The pooled token is first, so that the last layer has one
query per text, and the context is last, as prompts of images are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from prometar.clip.block import Layer
from prometar.clip.model import Clip
from prometar.clip.norm import Norm
from prometar.clip.part import Part, Projection
from prometar.clip.text_packing import pack
from prometar.clip.tower import Appended, Pass, Prompts, Replaced, appending_layers
from prometar.errors import UserError


@dataclass(frozen=True)
class TextInput:
    """Token sequences packed into R rows of T slots, for a set of classes.

    embedded_RTD: Tokens with positions added. SOS and the context are first.
    mask_R1TS: Added to the scores of the S keys, which are the slots of the row itself, and, before them if
        there are several rows, SOS and the context, which are in the first row.
    end_C: The slot of each EOT, counted row by row.
    If each text has a row of its own, both are None, the first slot is its end, and the context is last.
    """

    embedded_RTD: Tensor
    mask_R1TS: Tensor | None
    end_C: Tensor | None
    num_start: int
    num_context: int


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
        last = len(tokens[0]) - 1
        order = [last, *range(num_start), *range(start, last), *range(num_start, start)]
        embedded_CTD = clip.token_embedding[tokens_CT.to(clip.device)[:, order]] + clip.text_positions[order]
        return TextInput(embedded_CTD, None, None, num_start, num_context)
    rests = [ids[start : end + 1] for ids, end in zip(tokens, ends, strict=True)]
    packed = pack(tokens[0][:start], rests)
    ids, depth, sees, end = (torch.from_numpy(array).to(clip.device) for array in packed)
    if len(ids) == 1:
        sees[:, :, start : 2 * start] |= sees[:, :, :start]
        sees = sees[:, :, start:]
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
    run = _pass(clip, text, prompts, text.mask_R1TS)
    return run.value(text.embedded_RTD, _positioned(clip, text, prompts))


def text_pass(clip: Clip, text: TextInput, prompts: Prompts) -> tuple[Tensor, Pass]:
    """Return `encode_text`, and the pass that gives its derivatives."""
    mask, num_heads = text.mask_R1TS, clip.text.num_heads
    if mask is not None:  # copied for all heads once, and not in every layer
        mask = mask.expand(-1, num_heads, -1, -1).flatten(0, 1).unflatten(0, (-1, num_heads))
    run = _pass(clip, text, prompts, mask)
    return run.forward(text.embedded_RTD, _positioned(clip, text, prompts)), run


def _positioned(clip: Clip, text: TextInput, prompts: Prompts) -> Prompts:
    """Add the position embeddings to the prompts of layer 0."""
    num = text.num_context
    assert all(len(prompt) == num for prompt in prompts.values()), "prompts replace the whole context"
    if 0 not in prompts:
        return prompts
    return {**prompts, 0: prompts[0] + clip.text_positions[text.num_start :][:num]}


def _pass(clip: Clip, text: TextInput, prompts: Prompts, mask: Tensor | None) -> Pass:
    tower, num_context = clip.text, text.num_context
    slots: Appended | Replaced
    if mask is None:
        num_own = text.embedded_RTD.shape[1] - num_context
        slots, layers = Appended(num_own), appending_layers(tower, num_own, prompts, num_out=1)
    else:
        slots = Replaced(text.num_start, num_context)
        # The first keys of row 0 are also the first keys of all other rows.
        num_keys = mask.shape[-1] - mask.shape[-2]
        layers = [
            Layer(tower, block, mask=mask, num_shared=num_keys, ends=ends)
            for block, ends in zip(tower.blocks, [*[None] * (len(tower.blocks) - 1), text.end_C], strict=True)
        ]
    end: list[Part] = [Norm(clip.ln_final_weight, clip.ln_final_bias, tower.eps)]
    if clip.text_projection is not None:
        end.append(Projection(clip.text_projection, clip.text_projection_bias))
    return Pass(layers, slots, end=end)
