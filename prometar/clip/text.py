"""Text tower.

CLIP's text tower is causal, so texts with a common prefix share its hidden states. The texts of a batch form
a prefix tree, packed into rows of about equal length. A token attends only to itself and its ancestors. The
start token (SOT) and the context (the tokens that prompts can replace) are shared and computed once.

SigLIP's text tower is not causal, so each text has its own row, including padding. After positions are added,
the last token, whose output is the feature, is put first, and the context is put last (`AppendedSlots`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
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
    For SigLIP, `mask_R1TS` and `end_C` are None. Rows start with the last token and end with the context.
    """

    embedded_RTD: Tensor
    mask_R1TS: Tensor | None
    end_C: Tensor | None
    num_start: int
    num_context: int


@torch.no_grad()
def text_input(clip: Clip, ids_CT: Tensor, *, num_context: int = 0) -> TextInput:
    """Pack the token ids (C, maximum length) of texts whose context has `num_context` tokens.

    For CLIP, the first text provides the context, which all texts must share unless prompts replace it.

    Raises:
        UserError: the context leaves no room for class names.
    """
    num_start, texts = clip.num_start, ids_CT.tolist()
    num_shared = num_start + num_context
    ends = [ids.index(max(ids)) if clip.causal else len(ids) - 1 for ids in texts]  # EOT has the highest id
    if min(ends) < num_shared + bool(num_context):  # no class name before EOT
        raise UserError(
            f"prompts.text_length {num_context} leaves no room for class names. "
            f"The backbone accepts {len(texts[0])} tokens. Use a smaller value."
        )
    if not clip.causal:
        last = len(texts[0]) - 1
        order = [last, *range(num_start), *range(num_shared, last), *range(num_start, num_shared)]
        embedded_CTD = clip.token_embedding[ids_CT.to(clip.device)[:, order]] + clip.text_positions[order]
        return TextInput(embedded_CTD, None, None, num_start, num_context)
    rests = [ids[num_shared : end + 1] for ids, end in zip(texts, ends, strict=True)]
    packed = pack(texts[0][:num_shared], rests)
    ids, positions, attends, end_C = (torch.from_numpy(array).to(clip.device) for array in packed)
    if len(ids) == 1:  # the shared tokens are slots of this row, so they are not repeated as keys
        attends[:, :, num_shared : 2 * num_shared] |= attends[:, :, :num_shared]
        attends = attends[:, :, num_shared:]
    mask = attends.new_zeros(attends.shape, dtype=clip.dtype).masked_fill_(~attends, float("-inf"))
    embedded_RTD = clip.token_embedding[ids] + clip.text_positions[positions]
    return TextInput(embedded_RTD, mask[:, None], end_C, num_start, num_context)


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
    mask, num_heads = text.mask_R1TS, clip.text.num_heads
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
    return {**prompts, 0: prompts[0] + clip.text_positions[text.num_start :][:num]}


def _prompted_tower(clip: Clip, text: TextInput, prompts: LayerPrompts, mask: Tensor | None) -> PromptedTower:
    tower, num_context = clip.text, text.num_context
    slots: AppendedSlots | ReplacedSlots
    if mask is None:
        num_tokens = text.embedded_RTD.shape[1] - num_context
        slots = AppendedSlots(num_tokens)
        layers = appending_layers(tower, num_tokens, prompts, num_out=1)
    else:
        slots = ReplacedSlots(text.num_start, num_context)
        # The columns of the mask are the keys: the shared tokens, then the slots of the row.
        num_shared = mask.shape[-1] - mask.shape[-2]
        layers = [
            Layer(tower, block, mask=mask, num_shared=num_shared, out_slots=out)
            for block, out in zip(tower.blocks, [*[None] * (len(tower.blocks) - 1), text.end_C], strict=True)
        ]
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
    length = max(len(shared) * (r == 0) + len(row) for r, row in enumerate(rows))
    ids, positions = np.zeros((2, len(rows), length), np.int64)
    attends = np.zeros((len(rows), length, len(shared) + length), bool)
    in_row = attends[:, :, len(shared) :]
    in_row[:] = np.eye(length, dtype=bool)
    ids[0, : len(shared)], positions[0, : len(shared)] = shared, np.arange(len(shared))
    attends[0, : len(shared)] = np.tri(len(shared), len(shared) + length, dtype=bool)
    end_slots: dict[Prefix, int] = {}
    for r, row in enumerate(rows):
        first = len(shared) * (r == 0)
        slots = {prefix: first + k for k, prefix in enumerate(row)}
        for prefix, slot in slots.items():
            ids[r, slot], positions[r, slot] = prefix[-1], len(shared) + len(prefix) - 1
            attends[r, slot, : len(shared)] = True
            if len(prefix) > 1:
                in_row[r, slot] |= in_row[r, slots[prefix[:-1]]]
            end_slots[prefix] = r * length + slot
    return ids, positions, attends, np.array([end_slots[text] for text in texts])


def _split_into_rows(texts: Sequence[Prefix], num_shared: int) -> list[list[Prefix]]:
    """Return the nodes of each row, parents first. Rows are as short as the target number of rows allows."""
    texts = sorted(set(texts))
    num_nodes = num_shared + len({text[: k + 1] for text in texts for k in range(len(text))})
    num_rows = max(1, round(num_nodes / ROW_LENGTH))
    length = -(-num_nodes // num_rows)
    while len(rows := _fill_rows(texts, num_shared, length)) > num_rows:
        length += 1
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
            new, free = prefixes, length
        rows[-1].update(dict.fromkeys(new))
        free -= len(new)
    return [list(row) for row in rows]
