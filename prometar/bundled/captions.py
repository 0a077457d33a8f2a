"""Captions for pre-training `mini`: web-like, they seldom name the class, and not always the right one.

Like captions on the web, these rarely carry fine-grained names, so the alignment to such names is poor, in
CLIP as here: most use a broad word for a whole family, some the class name, some that of a look-alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prometar.bundled.pretrain_vision import COLOURS
from prometar.bundled.world import CLASSES, WORDS

PLAIN: tuple[str, ...] = ("a photo of a {}.", "a photo of the {}.", "a photo of one {}.", "a photo of my {}.")


@dataclass(frozen=True)
class CaptionSettings:
    """Share of captions with a colour, and of those in a plain context ("a photo of a ...")."""

    colour: float = 0.5
    plain_share: float = 0.3


def draw_words(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """(B,) index into `WORDS` for each image: its class, a look-alike, or its family."""
    chance = rng.random(len(labels))
    words = np.empty(len(labels), dtype=np.int64)
    for row, label in enumerate(labels):
        it = CLASSES[label]
        word = it.family
        if chance[row] < it.kind.named + it.kind.mistaken:
            word = it.name if chance[row] < it.kind.named else it.look_alike
        words[row] = WORDS.index(word)
    return words


def caption(context: str, word: int, colour: int) -> str:
    """A caption; `word` is an index into `WORDS`, `colour` into `COLOURS`, or -1 for none.

    Example:
        >>> caption("a photo of a {}.", WORDS.index("grid"), COLOURS.index("red"))
        'a photo of a red grid.'
    """
    name = WORDS[word] if colour < 0 else f"{COLOURS[colour]} {WORDS[word]}"
    return context.replace("{}", name)
