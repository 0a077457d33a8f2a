"""The text tower.

CLIP's is causal: a state depends only on the tokens up to it. Texts with a common start share its states, so
a batch of texts is a tree, packed into rows of about equal length. A node is a token after one particular
start, and attends to its ancestors and itself. A row has branches of different texts, which do not attend to
each other. SOS and the context, which all classes share, run once. Nothing is padded to the longest text.

In SigLIP's every token attends to all others, padding included, and each text has a row of its own. The
order of its tokens matters only to the positions. The pooled token is first, so that the last layer has one
query per text, and the context is last, as prompts of images are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prometar.clip.block import Layer
from prometar.clip.model import Clip
from prometar.clip.part import Norm, Part, Projection
from prometar.clip.tower import Appended, Pass, Prompts, Replaced, appending_layers
from prometar.errors import UserError

ROW_LENGTH = 96
"""Desired slots per row. Long rows waste attention between branches, and short ones make small products."""

Start = tuple[int, ...]
"""The first tokens of a text, which identify a node."""


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


def pack(shared: Sequence[int], rests: Sequence[Sequence[int]]) -> tuple[np.ndarray, ...]:
    """Pack texts that are `shared` (not empty) followed by one of `rests` (none empty).

    Returns:
        The ids, depth, sees and end of R rows of T slots. The P shared tokens are in row 0.
        ids, depth: (R, T), the token of each slot, and its position in its text; 0 at empty slots.
        sees: (R, T, P + T), if a slot attends to a shared token, or to a slot of its own row. An empty slot
            attends to itself.
        end: (N,), the last slot of each text, as r * T + slot.

    Example:
        >>> ids, _, _, end = pack([7], [[1, 2], [1, 3]])
        >>> ids.tolist(), end.tolist()
        ([[7, 1, 2, 3]], [2, 3])
    """
    starts = [tuple(rest) for rest in rests]
    branches = _cut(starts, len(shared))
    length = max(len(shared) * (r == 0) + len(branch) for r, branch in enumerate(branches))
    ids, depth = np.zeros((2, len(branches), length), np.int64)
    sees = np.zeros((len(branches), length, len(shared) + length), bool)
    own = sees[:, :, len(shared) :]
    own[:] = np.eye(length, dtype=bool)
    ids[0, : len(shared)], depth[0, : len(shared)] = shared, np.arange(len(shared))
    sees[0, : len(shared)] = np.tri(len(shared), len(shared) + length, dtype=bool)
    places: dict[Start, int] = {}
    for r, branch in enumerate(branches):
        first = len(shared) * (r == 0)
        slots = {start: first + k for k, start in enumerate(branch)}
        for start, slot in slots.items():
            ids[r, slot], depth[r, slot] = start[-1], len(shared) + len(start) - 1
            sees[r, slot, : len(shared)] = True
            if len(start) > 1:
                own[r, slot] |= own[r, slots[start[:-1]]]
            places[start] = r * length + slot
    return ids, depth, sees, np.array([places[start] for start in starts])


def _cut(starts: Sequence[Start], num_shared: int) -> list[list[Start]]:
    """Return the nodes of each row, parents first, with the shortest rows that give the desired number."""
    texts = sorted(set(starts))
    num_nodes = num_shared + len({text[: k + 1] for text in texts for k in range(len(text))})
    num_rows = max(1, round(num_nodes / ROW_LENGTH))
    length = -(-num_nodes // num_rows)
    while len(rows := _fill(texts, num_shared, length)) > num_rows:
        length += 1
    return rows


def _fill(texts: Sequence[Start], num_shared: int, length: int) -> list[list[Start]]:
    """Fill row after row of at most `length` slots, or more if one text alone is longer."""
    rows: list[dict[Start, None]] = [{}]
    free = length - num_shared
    for text in texts:
        starts = [text[: k + 1] for k in range(len(text))]
        new = [start for start in starts if start not in rows[-1]]
        if len(new) > free and rows[-1]:
            rows.append({})
            new, free = starts, length
        rows[-1].update(dict.fromkeys(new))
        free -= len(new)
    return [list(row) for row in rows]
