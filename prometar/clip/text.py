"""Text tower.

CLIP's text tower is causal, so texts with a common prefix share its hidden states. The texts of a batch form
a prefix tree, packed into rows of about equal length. A token attends only to itself and its ancestors. The
start token (SOT) and the context (the tokens that prompts can replace) are shared and computed once.

SigLIP's text tower is not causal, so each text has its own row, including padding. After positions are added,
the last token, whose output is the feature, is put first, and the context is put last (`AppendedSlots`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prometar.clip.function import AnyFunction, Norm, Projection
from prometar.clip.model import Clip
from prometar.clip.tower import (
    AppendedSlots,
    Layer,
    LayerPrompts,
    Pass,
    PromptedTower,
    ReplacedSlots,
    appending_layers,
)
from prometar.errors import UserError

ROW_LENGTH = 96
"""Target number of tokens per row. Long rows waste attention on other texts. Short rows slow down matmuls."""

Prefix = tuple[int, ...]
"""One or more first token ids of a text, after those that all texts share. A node of the prefix tree."""


@dataclass(frozen=True)
class TextInput:
    """Texts of C classes, packed into R rows of T slots. A slot holds one token.

    embedded_RTD: Token embeddings plus position embeddings. SOT and the context are the first slots of row 0.
    mask_R1TS: Attention mask. Its S keys are SOT and the context (only if R > 1), then the row's slots.
    end_C: Index of each text's end token (EOT) in the flattened (R x T) slots.
    mask_before_R1TS: The same mask, except that no other slot attends to the context. For layers before the
        one in which the context is inserted. None unless it is inserted.
    is_packed: True if only row 0 has the context. False if each text has its own row with its own context.
    context_start: Index of the context's first slot in a row.
    block: Index of the block that the slots enter, 0 unless `before_block` was called.
    For SigLIP, masks and `end_C` are None. Rows start with the last token and end with the context, which is
    missing until it is inserted.
    """

    embedded_RTD: Tensor
    mask_R1TS: Tensor | None
    end_C: Tensor | None
    num_start: int
    num_context: int
    context_start: int
    mask_before_R1TS: Tensor | None = None
    is_packed: bool = True
    block: int = 0


@torch.no_grad()
def text_input(
    clip: Clip, ids_CT: Tensor, *, num_context: int = 0, inserted: bool = False, packed: bool = True
) -> TextInput:
    """Return the input of the text tower for texts with the token ids (C, maximum length).

    Args:
        clip: Frozen CLIP.
        ids_CT: Token ids. For CLIP, the first text provides the context, which all texts must share unless
            prompts replace it.
        num_context: Number of tokens of the context, which prompts replace.
        inserted: True if the texts have no context, and prompts are inserted in its place.
        packed: False to give each text its own row. For SigLIP, each text always has its own row.

    Raises:
        UserError: the context leaves no room for class names.
    """
    num_start = clip.num_start
    num_replaced = 0 if inserted else num_context
    texts: list[list[int]] = ids_CT.tolist()
    ends = [len(ids) - 1 for ids in texts]
    if clip.causal:
        ends = [ids.index(max(ids)) for ids in texts]  # the end token (EOT) has the highest id
    # If tokens are replaced, at least one token of the class name must precede EOT.
    min_end = num_start
    if num_replaced:
        min_end += num_replaced + 1
    if min(ends) < min_end:
        raise UserError(
            f"prompts.text_length {num_context} leaves no room for class names. "
            f"The backbone accepts {len(texts[0])} tokens. Use a smaller value."
        )
    if not clip.causal:
        first_rest = num_start + num_replaced
        last = len(texts[0]) - 1
        order = [last, *range(num_start), *range(first_rest, last), *range(num_start, first_rest)]
        embedded_CTD = clip.token_embedding[ids_CT.to(clip.device)[:, order]] + clip.text_positions[order]
        return TextInput(
            embedded_RTD=embedded_CTD,
            mask_R1TS=None,
            end_C=None,
            num_start=num_start,
            num_context=num_context,
            context_start=len(order) - num_replaced,
            is_packed=False,
        )
    if inserted:  # the slots of the context contain token 0, to which no other slot attends before insertion
        texts = [ids[:num_start] + [0] * num_context + ids[num_start:] for ids in texts]
        ends = [end + num_context for end in ends]
    num_shared = num_start + num_context
    if packed:
        rests = [ids[num_shared : end + 1] for ids, end in zip(texts, ends, strict=True)]
        ids_RT, positions_RT, attends_RTS, ends_C = pack(texts[0][:num_shared], rests)
    else:
        ids_RT, positions_RT, attends_RTS, ends_C = one_row_each(texts, ends)
    if inserted:
        positions_RT = np.where(positions_RT >= num_shared, positions_RT - num_context, positions_RT)
        # Context slots have no position of their own. Theirs must only exist.
        positions_RT = np.minimum(positions_RT, len(clip.text_positions) - 1)
    masks = [attends_RTS]
    if inserted:
        before = attends_RTS.copy()
        context = np.arange(num_start, num_shared)
        before[:, :, context] = False
        rows_with_context = before[:1] if packed else before
        rows_with_context[:, context, context] = True  # a softmax over no keys would be NaN
        masks.append(before)
    # The shared tokens of a single row are slots of this row, so they are not repeated as keys.
    if packed and len(ids_RT) == 1:
        masks = [_without_shared_keys(mask, num_shared) for mask in masks]
    ids = torch.from_numpy(ids_RT).to(clip.device)
    positions = torch.from_numpy(positions_RT).to(clip.device)
    return TextInput(
        embedded_RTD=clip.token_embedding[ids] + clip.text_positions[positions],
        mask_R1TS=_additive_mask(clip, masks[0]),
        end_C=torch.from_numpy(ends_C).to(clip.device),
        num_start=num_start,
        num_context=num_context,
        context_start=num_start,
        mask_before_R1TS=_additive_mask(clip, masks[1]) if inserted else None,
        is_packed=packed,
    )


def _additive_mask(clip: Clip, attends_RTS: NDArray[np.bool_]) -> Tensor:
    """Return a mask (R, 1, T, S) to add to the scores: 0 where a slot attends to a key, otherwise -inf."""
    zeros_RTS = torch.zeros(attends_RTS.shape, dtype=clip.dtype, device=clip.device)
    is_excluded_RTS = torch.from_numpy(~attends_RTS).to(clip.device)
    return zeros_RTS.masked_fill_(is_excluded_RTS, float("-inf"))[:, None]


def _without_shared_keys(attends_RTS: NDArray[np.bool_], num_shared: int) -> NDArray[np.bool_]:
    """Merge the keys of the shared tokens into those of the slots that contain them."""
    merged = attends_RTS[:, :, num_shared:].copy()
    merged[:, :, :num_shared] |= attends_RTS[:, :, :num_shared]
    return merged


def one_row_each(
    texts: Sequence[Sequence[int]], ends: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Return what `pack` returns, with one row for each text and no shared keys.

    Example:
        >>> ids, positions, attends, ends = one_row_each([[7, 1, 9, 0], [7, 9, 0, 0]], [2, 1])
        >>> ids.tolist(), ends.tolist()
        ([[7, 1, 9], [7, 9, 0]], [2, 4])
    """
    length = max(ends) + 1
    ids = np.array([list(text[:length]) for text in texts], np.int64)
    positions = np.broadcast_to(np.arange(length), ids.shape).copy()
    attends = np.broadcast_to(np.tri(length, dtype=bool), (len(texts), length, length)).copy()
    return ids, positions, attends, np.arange(len(texts)) * length + np.array(ends)


@torch.no_grad()
def before_block(clip: Clip, text: TextInput, block: int) -> TextInput:
    """Return the input of a later block: apply the frozen blocks before it, with an absent context."""
    mask = text.mask_R1TS if text.mask_before_R1TS is None else text.mask_before_R1TS
    num_shared = 0 if mask is None else mask.shape[-1] - mask.shape[-2]
    slots_RTD = text.embedded_RTD
    for frozen in clip.text.blocks[text.block : block]:
        slots_RTD = Layer(clip.text, frozen, mask=mask, num_shared=num_shared).value(slots_RTD)
    return replace(text, embedded_RTD=slots_RTD, block=block)


def encode_text(clip: Clip, text: TextInput, prompts: LayerPrompts | None = None) -> Tensor:
    """Return unnormalized text features (C, E). Prompts replace the context tokens in their layers.

    Position embeddings are added to the prompt of layer 0, but not to deeper prompts.
    """
    prompts = prompts or {}
    if torch.is_grad_enabled():
        return text_pass(clip, text, prompts)[0]
    tower = _prompted_tower(clip, text, prompts, text.mask_R1TS)
    return tower.value(text.embedded_RTD, _with_positions(clip, text, prompts))


def text_pass(clip: Clip, text: TextInput, prompts: LayerPrompts) -> tuple[Tensor, Pass]:
    """Return the text features and the `Pass` that computes their derivatives."""
    mask = text.mask_R1TS
    num_heads = clip.text.num_heads
    if mask is not None:  # expanded to all heads once, instead of in every layer
        mask = mask.expand(-1, num_heads, -1, -1).flatten(0, 1).unflatten(0, (-1, num_heads))
    tower = _prompted_tower(clip, text, prompts, mask)
    return tower.forward(text.embedded_RTD, _with_positions(clip, text, prompts))


def _with_positions(clip: Clip, text: TextInput, prompts: LayerPrompts) -> LayerPrompts:
    """Add the position embeddings to the prompts of layer 0."""
    num = text.num_context
    assert all(len(prompt) == num for prompt in prompts.values()), "prompts replace the whole context"
    if 0 not in prompts:
        return prompts
    return {**prompts, 0: prompts[0] + clip.text_positions[text.num_start : text.num_start + num]}


def _prompted_tower(clip: Clip, text: TextInput, prompts: LayerPrompts, mask: Tensor | None) -> PromptedTower:
    assert text.block == 0, "prompts are numbered from block 0 on"
    tower = clip.text
    num_context = text.num_context
    slots: AppendedSlots | ReplacedSlots
    if mask is None:
        num_tokens = text.embedded_RTD.shape[1] - num_context
        slots = AppendedSlots(num_tokens)
        layers = appending_layers(tower, num_tokens, prompts, num_out=1)
    else:
        slots = ReplacedSlots(text.num_start, num_context)
        # The columns of the mask are the keys: the shared tokens, then the slots of the row.
        num_shared = mask.shape[-1] - mask.shape[-2]
        layers = [Layer(tower, block, mask=mask, num_shared=num_shared) for block in tower.blocks[:-1]]
        layers.append(Layer(tower, tower.blocks[-1], mask=mask, num_shared=num_shared, out_slots=text.end_C))
    head: list[AnyFunction] = [Norm(clip.ln_final_weight, clip.ln_final_bias, tower.eps)]
    if clip.text_projection is not None:
        head.append(Projection(clip.text_projection, clip.text_projection_bias))
    return PromptedTower(layers, slots, head)


def pack(shared: Sequence[int], rests: Sequence[Sequence[int]]) -> tuple[np.ndarray, ...]:
    """Pack texts into R rows of T slots. Each text is `shared` followed by one of `rests` (all nonempty).

    Returns:
        ids: Token id of each slot (R, T), 0 in empty slots. Row 0 starts with the shared tokens.
        positions: Position of each slot's token in its text (R, T), 0 in empty slots.
        attends: True if a slot attends to a key (R, T, len(shared) + T). Keys are the shared tokens, then the
            slots of the row. An empty slot attends to itself, because a softmax over no keys would be NaN.
        ends: Last slot of each text, as row * T + slot.

    Example:
        >>> ids, _, _, ends = pack([7], [[1, 2], [1, 3]])
        >>> ids.tolist(), ends.tolist()
        ([[7, 1, 2, 3]], [2, 3])
    """
    texts = [tuple(rest) for rest in rests]
    rows = _split_into_rows(texts, len(shared))
    lengths = [len(row) for row in rows]
    lengths[0] += len(shared)
    length = max(lengths)
    ids = np.zeros((len(rows), length), np.int64)
    positions = np.zeros((len(rows), length), np.int64)
    attends = np.zeros((len(rows), length, len(shared) + length), bool)
    in_row = attends[:, :, len(shared) :]
    in_row[:] = np.eye(length, dtype=bool)
    ids[0, : len(shared)] = shared
    positions[0, : len(shared)] = np.arange(len(shared))
    attends[0, : len(shared)] = np.tri(len(shared), len(shared) + length, dtype=bool)
    end_slots: dict[Prefix, int] = {}
    for r, row in enumerate(rows):
        first = len(shared) if r == 0 else 0
        slots = {prefix: first + k for k, prefix in enumerate(row)}
        for prefix, slot in slots.items():
            ids[r, slot] = prefix[-1]
            positions[r, slot] = len(shared) + len(prefix) - 1
            attends[r, slot, : len(shared)] = True
            if len(prefix) > 1:
                in_row[r, slot] |= in_row[r, slots[prefix[:-1]]]
            end_slots[prefix] = r * length + slot
    return ids, positions, attends, np.array([end_slots[text] for text in texts])


def _split_into_rows(texts: Sequence[Prefix], num_shared: int) -> list[list[Prefix]]:
    """Return the nodes of each row, parents first. Rows are as short as the target number of rows allows."""
    texts = sorted(set(texts))
    prefixes = {text[: k + 1] for text in texts for k in range(len(text))}
    num_nodes = num_shared + len(prefixes)
    num_rows = max(1, round(num_nodes / ROW_LENGTH))
    length = math.ceil(num_nodes / num_rows)
    rows = _fill_rows(texts, num_shared, length)
    while len(rows) > num_rows:
        length += 1
        rows = _fill_rows(texts, num_shared, length)
    return rows


def _fill_rows(texts: Sequence[Prefix], num_shared: int, length: int) -> list[list[Prefix]]:
    """Fill rows of at most `length` slots, except that a longer text gets a longer row."""
    rows: list[dict[Prefix, None]] = [{}]
    free = length - num_shared
    for text in texts:
        prefixes = [text[: k + 1] for k in range(len(text))]
        new = [prefix for prefix in prefixes if prefix not in rows[-1]]
        if len(new) > free and rows[-1]:
            rows.append({})
            new = prefixes
            free = length
        rows[-1].update(dict.fromkeys(new))
        free -= len(new)
    return [list(row) for row in rows]
