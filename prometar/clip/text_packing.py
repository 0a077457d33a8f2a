"""Texts as a tree of tokens, packed into rows of about equal length.

A causal state depends only on the tokens up to it. Texts with a common start share its states, and a batch
of texts is a tree. A node is a token after one particular start, and attends to its ancestors and itself.
A row has branches of different texts, which do not attend to each other. Nothing is padded to the longest.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Start = tuple[int, ...]
"""The first tokens of a text, which identify a node."""

ROW_LENGTH = 96
"""Desired slots per row. Long rows waste attention between branches, and short ones make small products."""


Packed = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]
"""The ids, depth, sees and end of R rows of T slots. P tokens that all texts start with are in row 0.

ids, depth: (R, T), the token of each slot, and its position in its text; 0 at empty slots.
sees: (R, T, P + T), if a slot attends to a shared token, or to a slot of its own row. An empty slot attends
    to itself.
end: (N,), the last slot of each text, as r * T + slot.
"""


def pack(shared: Sequence[int], rests: Sequence[Sequence[int]]) -> Packed:
    """Pack texts that are `shared` (not empty) followed by one of `rests` (none empty).

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
