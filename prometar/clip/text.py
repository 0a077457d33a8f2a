"""Text tower.

CLIP's text tower is causal, so texts with a common prefix share its hidden states. The texts of a batch form
a prefix tree, whose tokens are packed into rows of about equal length. A token attends only to itself and its
ancestors. The start token (SOT) and the context (the tokens that prompts can replace) are shared by all
texts, and computed once.

SigLIP's text tower is not causal, so each text has its own row, including padding. Its feature is the output
of the last token. Position embeddings are added to the tokens in their original order. Then the last token
moves to the front of its row, and the context to the end (`AppendedSlots`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prometar.clip.attention import num_shared_keys
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
"""Target number of tokens per row.

In longer rows, more attention scores are computed between different texts, and discarded. Shorter rows make
matrix products slower.
"""

Prefix = tuple[int, ...]
"""The first token ids of a text (at least one), not counting the tokens that all texts share.

Each prefix is a node of the prefix tree. Its token is its last id.
"""


@dataclass(frozen=True)
class TextInput:
    """Texts of C classes, packed into R rows of T slots. A slot holds one token.

    embedded_RTD: Token embeddings plus position embeddings. SOT and the context are the first slots of row 0.
    mask_R1TS: Attention mask. Its S keys are SOT and the context (only if R > 1), then the row's slots.
    end_C: Index of each text's end token (EOT) in the flattened (R x T) slots.
    num_start: Number of start tokens.
    num_context: Number of tokens of the context.
    context_start: Index of the context's first slot in a row.
    mask_before_R1TS: Attention mask for the layers before the one in which the context is inserted. The only
        difference from `mask_R1TS` is that no other slot attends to the context. None if nothing is inserted.
    is_packed: True if only row 0 has the context. False if each text has its own row with its own context.
    block: Index of the block whose input these slots are. It is 0 unless `before_block` was called.

    For SigLIP, masks and `end_C` are None. Each row starts with the last token and ends with the context. A
    context that will be inserted is still missing.
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
    texts: list[list[int]] = ids_CT.tolist()
    ends = [len(ids) - 1 for ids in texts]
    if clip.causal:
        ends = [ids.index(max(ids)) for ids in texts]  # the end token (EOT) has the highest id

    num_replaced = 0 if inserted else num_context
    min_end = clip.num_start
    if num_replaced:
        # At least one token of the class name follows the replaced tokens, before EOT.
        min_end += num_replaced + 1
    if min(ends) < min_end:
        raise UserError(
            f"prompts.text_length {num_context} leaves no room for class names. "
            f"The backbone accepts {len(texts[0])} tokens. Use a smaller value."
        )

    if clip.causal:
        return _causal_input(clip, texts, ends, num_context=num_context, inserted=inserted, packed=packed)
    return _siglip_input(clip, ids_CT, num_context=num_context, num_replaced=num_replaced)


def _siglip_input(clip: Clip, ids_CT: Tensor, *, num_context: int, num_replaced: int) -> TextInput:
    """Return rows of the last token, the start tokens, the rest, and the `num_replaced` context tokens."""
    last = ids_CT.shape[1] - 1
    context_start = clip.num_start
    context_stop = context_start + num_replaced
    start_tokens = range(context_start)
    context = range(context_start, context_stop)
    rest = range(context_stop, last)
    order = [last, *start_tokens, *rest, *context]

    ids = ids_CT.to(clip.device)[:, order]
    return TextInput(
        embedded_RTD=clip.token_embedding[ids] + clip.text_positions[order],
        mask_R1TS=None,
        end_C=None,
        num_start=clip.num_start,
        num_context=num_context,
        context_start=len(order) - num_replaced,
        is_packed=False,
    )


def _causal_input(
    clip: Clip, texts: list[list[int]], ends: list[int], *, num_context: int, inserted: bool, packed: bool
) -> TextInput:
    """Return the input for CLIP's text tower. `ends` contains the index of EOT in each text."""
    num_start = clip.num_start
    num_shared = num_start + num_context
    if inserted:
        # Token 0 fills the context's slots until prompts are inserted. No other slot attends to it.
        placeholders = [0] * num_context
        texts = [ids[:num_start] + placeholders + ids[num_start:] for ids in texts]
        ends = [end + num_context for end in ends]

    if packed:
        rests = [ids[num_shared : end + 1] for ids, end in zip(texts, ends, strict=True)]
        rows = pack(texts[0][:num_shared], rests)
    else:
        rows = one_row_each(texts, ends)

    positions_RT = rows.positions
    attends_RTS = rows.attends
    attends_before_RTS: NDArray[np.bool_] | None = None
    if inserted:
        positions_RT = np.where(positions_RT >= num_shared, positions_RT - num_context, positions_RT)
        # The context has no positions, so its slots may have any positions that exist.
        last_position = len(clip.text_positions) - 1
        positions_RT = np.minimum(positions_RT, last_position)
        context = np.arange(num_start, num_shared)
        attends_before_RTS = _before_insertion(attends_RTS, context, packed=packed)

    if packed and len(rows.ids) == 1:
        # The shared tokens are slots of the only row, so they need not be additional keys.
        attends_RTS = _without_shared_keys(attends_RTS, num_shared)
        if attends_before_RTS is not None:
            attends_before_RTS = _without_shared_keys(attends_before_RTS, num_shared)

    ids = torch.from_numpy(rows.ids).to(clip.device)
    positions = torch.from_numpy(positions_RT).to(clip.device)
    return TextInput(
        embedded_RTD=clip.token_embedding[ids] + clip.text_positions[positions],
        mask_R1TS=_additive_mask(clip, attends_RTS),
        end_C=torch.from_numpy(rows.ends).to(clip.device),
        num_start=num_start,
        num_context=num_context,
        context_start=num_start,
        mask_before_R1TS=None if attends_before_RTS is None else _additive_mask(clip, attends_before_RTS),
        is_packed=packed,
    )


def _before_insertion(
    attends_RTS: NDArray[np.bool_], context: NDArray[np.int64], *, packed: bool
) -> NDArray[np.bool_]:
    """Return a copy in which no slot attends to the slots `context`, except each of these to itself."""
    before = attends_RTS.copy()
    before[:, :, context] = False
    # A context slot must have one key, because a softmax over no keys would be NaN.
    rows_with_context = before[:1] if packed else before
    rows_with_context[:, context, context] = True
    return before


def _additive_mask(clip: Clip, attends_RTS: NDArray[np.bool_]) -> Tensor:
    """Return a mask (R, 1, T, S) to add to the scores: 0 where a slot attends to a key, otherwise -inf."""
    zeros_RTS = torch.zeros(attends_RTS.shape, dtype=clip.dtype, device=clip.device)
    is_excluded_RTS = torch.from_numpy(~attends_RTS).to(clip.device)
    return zeros_RTS.masked_fill_(is_excluded_RTS, float("-inf"))[:, None]


def _without_shared_keys(attends_RTS: NDArray[np.bool_], num_shared: int) -> NDArray[np.bool_]:
    """Merge the first `num_shared` keys (the shared tokens) into those of the slots that contain them."""
    merged = attends_RTS[:, :, num_shared:].copy()
    merged[:, :, :num_shared] |= attends_RTS[:, :, :num_shared]
    return merged


class Rows(NamedTuple):
    """Texts in R rows of T slots, each with S keys.

    ids: Token id of each slot (R, T), 0 in empty slots.
    positions: Position of each slot's token in its text (R, T), 0 in empty slots.
    attends: True if a slot attends to a key (R, T, S). The first S - T keys are the shared tokens, and the
        last T keys are the slots of the row.
    ends: Slot of each text's last token, as row * T + slot.
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    attends: NDArray[np.bool_]
    ends: NDArray[np.int64]


def one_row_each(texts: Sequence[Sequence[int]], ends: Sequence[int]) -> Rows:
    """Return one row for each text, without shared keys (S = T). `ends`: index of each text's last token.

    Example:
        >>> rows = one_row_each([[7, 1, 9, 0], [7, 9, 0, 0]], [2, 1])
        >>> rows.ids.tolist(), rows.ends.tolist()
        ([[7, 1, 9], [7, 9, 0]], [2, 4])
    """
    length = max(ends) + 1
    ids = np.array([list(text[:length]) for text in texts], np.int64)
    positions = np.broadcast_to(np.arange(length), ids.shape).copy()
    causal = np.tri(length, dtype=bool)
    attends = np.broadcast_to(causal, (len(texts), length, length)).copy()
    first_slots = np.arange(len(texts)) * length
    return Rows(ids, positions, attends, first_slots + np.array(ends))


@torch.no_grad()
def before_block(clip: Clip, text: TextInput, block: int) -> TextInput:
    """Return the input of a later block, by applying the frozen blocks before it. No prompts are inserted."""
    mask = text.mask_before_R1TS
    if mask is None:
        mask = text.mask_R1TS
    num_shared = num_shared_keys(mask)
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
        features, _ = text_pass(clip, text, prompts)
        return features
    tower = _prompted_tower(clip, text, prompts, text.mask_R1TS)
    return tower.value(text.embedded_RTD, _with_positions(clip, text, prompts))


def text_pass(clip: Clip, text: TextInput, prompts: LayerPrompts) -> tuple[Tensor, Pass]:
    """Return the text features and the `Pass` that computes their derivatives."""
    mask = text.mask_R1TS
    if mask is not None:
        # Each head gets a copy in memory here, once, instead of in every layer.
        num_heads = clip.text.num_heads
        mask_of_heads = mask.expand(-1, num_heads, -1, -1).flatten(0, 1)
        mask = mask_of_heads.unflatten(0, (-1, num_heads))
    tower = _prompted_tower(clip, text, prompts, mask)
    return tower.forward(text.embedded_RTD, _with_positions(clip, text, prompts))


def _with_positions(clip: Clip, text: TextInput, prompts: LayerPrompts) -> LayerPrompts:
    """Add the position embeddings to the prompts of layer 0."""
    lengths = [len(prompt) for prompt in prompts.values()]
    assert all(length == text.num_context for length in lengths), "prompts replace the whole context"
    if 0 not in prompts:
        return prompts
    context_stop = text.num_start + text.num_context
    positions = clip.text_positions[text.num_start : context_stop]
    return {**prompts, 0: prompts[0] + positions}


def _prompted_tower(clip: Clip, text: TextInput, prompts: LayerPrompts, mask: Tensor | None) -> PromptedTower:
    """Return the text tower with slots for prompts. For CLIP, `mask` may have a copy for each head."""
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
        num_shared = num_shared_keys(mask)
        layers = [Layer(tower, block, mask=mask, num_shared=num_shared) for block in tower.blocks[:-1]]
        # The last layer returns only the outputs at the end tokens.
        layers.append(Layer(tower, tower.blocks[-1], mask=mask, num_shared=num_shared, out_slots=text.end_C))

    head: list[AnyFunction] = [Norm(clip.ln_final_weight, clip.ln_final_bias, tower.eps)]
    if clip.text_projection is not None:
        head.append(Projection(clip.text_projection, clip.text_projection_bias))
    return PromptedTower(layers, slots, head)


def pack(shared: Sequence[int], rests: Sequence[Sequence[int]]) -> Rows:
    """Pack texts into rows. Each text is `shared` followed by one of `rests` (all nonempty).

    The keys of each row are the shared tokens, then the slots of the row. Row 0 starts with the shared
    tokens. An empty slot attends to itself, because a softmax over no keys would be NaN.

    Example:
        >>> rows = pack([7], [[1, 2], [1, 3]])
        >>> rows.ids.tolist(), rows.ends.tolist()
        ([[7, 1, 2, 3]], [2, 3])
    """
    num_shared = len(shared)
    texts = [tuple(rest) for rest in rests]
    prefixes_by_row = _split_into_rows(texts, num_shared)
    lengths = [len(prefixes) for prefixes in prefixes_by_row]
    lengths[0] += num_shared
    num_rows = len(lengths)
    length = max(lengths)

    ids = np.zeros((num_rows, length), np.int64)
    positions = np.zeros((num_rows, length), np.int64)
    attends = np.zeros((num_rows, length, num_shared + length), bool)
    attends_in_row = attends[:, :, num_shared:]  # a view
    attends_in_row[:] = np.eye(length, dtype=bool)

    ids[0, :num_shared] = shared
    positions[0, :num_shared] = np.arange(num_shared)
    attends[0, :num_shared] = np.tri(num_shared, num_shared + length, dtype=bool)

    flat_slots: dict[Prefix, int] = {}  # row * T + slot
    for row, prefixes in enumerate(prefixes_by_row):
        first_slot = num_shared if row == 0 else 0
        slots: dict[Prefix, int] = {}
        for slot, prefix in enumerate(prefixes, first_slot):
            slots[prefix] = slot
            flat_slots[prefix] = row * length + slot
            ids[row, slot] = prefix[-1]
            positions[row, slot] = num_shared + len(prefix) - 1
            attends[row, slot, :num_shared] = True
            parent = prefix[:-1]
            if parent:
                attends_in_row[row, slot] |= attends_in_row[row, slots[parent]]
    ends = np.array([flat_slots[text] for text in texts])
    return Rows(ids, positions, attends, ends)


def _split_into_rows(texts: Sequence[Prefix], num_shared: int) -> list[list[Prefix]]:
    """Return the prefixes of each row, shorter ones first. Row 0 also has room for the shared tokens.

    Rows are as short as the target number of rows allows.
    """
    distinct_texts = sorted(set(texts))
    nodes: set[Prefix] = set()
    for text in distinct_texts:
        nodes.update(_prefixes_of(text))
    num_slots = num_shared + len(nodes)
    num_rows = max(1, round(num_slots / ROW_LENGTH))

    # A prefix can be needed in several rows, so the rows may have to be longer than this.
    length = math.ceil(num_slots / num_rows)
    rows = _fill_rows(distinct_texts, num_shared, length)
    while len(rows) > num_rows:
        length += 1
        rows = _fill_rows(distinct_texts, num_shared, length)
    return rows


def _prefixes_of(text: Prefix) -> list[Prefix]:
    """Return all prefixes of a text, from its first token to the whole text."""
    return [text[:length] for length in range(1, len(text) + 1)]


def _fill_rows(texts: Sequence[Prefix], num_shared: int, length: int) -> list[list[Prefix]]:
    """Fill rows of at most `length` slots, except that a longer text gets a longer row.

    A row contains all prefixes of its texts once, each after its parent.
    """
    rows: list[dict[Prefix, None]] = [{}]  # dictionaries without values serve as ordered sets
    num_free = length - num_shared
    for text in texts:
        prefixes = _prefixes_of(text)
        new = [prefix for prefix in prefixes if prefix not in rows[-1]]
        if len(new) > num_free and rows[-1]:
            rows.append({})
            new = prefixes
            num_free = length
        rows[-1].update(dict.fromkeys(new))
        num_free -= len(new)
    return [list(row) for row in rows]
