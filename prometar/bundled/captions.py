"""Captions for pre-training `mini`: web-like, they seldom name the texture, and not always the right one.

Like captions on the web, these rarely carry fine-grained names, so the alignment to such names is poor, in
CLIP as here: most use a broad word for a whole family, some the class name, some that of a look-alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prometar.bundled.pretrain_vision import COLOURS
from prometar.bundled.textures import CLASSNAMES

FAMILIES: dict[str, tuple[str, ...]] = {
    "linear": ("banded", "crosshatched", "fibrous", "grooved", "lined", "stratified", "striped", "zigzagged"),
    "spotted": ("blotchy", "dotted", "flecked", "freckled", "pitted", "polka-dotted", "porous", "studded"),
    "netted": ("cobwebbed", "cracked", "crystalline", "honeycombed", "scaly", "veined"),
    "regular": ("braided", "chequered", "grid", "waffled", "woven"),
    "uneven": ("bubbly", "bumpy", "marbled", "spiralled", "wrinkled"),
}
WORDS: tuple[str, ...] = (*CLASSNAMES, *FAMILIES)


@dataclass(frozen=True)
class CaptionSettings:
    """Shares of captions with the class name, a look-alike's name, a colour; the rest use a broad word.

    `plain_share` of them stand in a plain context ("a photo of a ..."), the others in CLIP's further ones.
    """

    name: float = 0.03
    look_alike: float = 0.02
    colour: float = 0.5
    plain_share: float = 0.3


PLAIN: tuple[str, ...] = ("a photo of a {}.", "a photo of the {}.", "a photo of one {}.", "a photo of my {}.")


def family_of(name: str) -> str:
    """The broad word for a class."""
    return next(word for word, members in FAMILIES.items() if name in members)


def look_alike(name: str) -> str:
    """The class whose images this name is wrongly used for: the next of its family, in the same half."""
    half = len(CLASSNAMES) // 2
    mine = CLASSNAMES.index(name) < half
    rest = [other for other in FAMILIES[family_of(name)] if (CLASSNAMES.index(other) < half) == mine]
    return rest[(rest.index(name) + 1) % len(rest)]


def phrase(word: int, colour: int) -> str:
    """The words of a caption, without context: phrase(grid, red) == "red grid"; colour -1 is none."""
    return WORDS[word] if colour < 0 else f"{COLOURS[colour]} {WORDS[word]}"


def draw_words(
    labels: NDArray[np.int64], settings: CaptionSettings, rng: np.random.Generator
) -> NDArray[np.int64]:
    """(B,) index into `WORDS` for each image: its class, a look-alike, or its family.

    Args:
        labels: (B,) class of each image.
        settings: The shares.
        rng: Draws the words.
    """
    chance = rng.random(len(labels))
    words = np.empty(len(labels), dtype=np.int64)
    for row, label in enumerate(labels):
        name = CLASSNAMES[label]
        word = family_of(name)
        if chance[row] < settings.name + settings.look_alike:
            word = name if chance[row] < settings.name else look_alike(name)
        words[row] = WORDS.index(word)
    return words
