"""Web-like captions for pre-training `mini`. They rarely name the class and sometimes name a wrong one.

Most captions use a broad word for a family of classes, some the class name, and some the name of a similar
class. Fine-grained names are therefore poorly aligned with images, as in CLIP.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .pretrain_vision import COLORS
from .world import CLASSES, WORDS

PLAIN: tuple[str, ...] = ("a photo of a {}.", "a photo of the {}.", "a photo of one {}.", "a photo of my {}.")


@dataclass(frozen=True)
class CaptionSettings:
    """Shares of captions with a color, and of captions with a plain context ("a photo of a ...")."""

    color: float = 0.5
    plain_share: float = 0.3


def draw_words(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return an index (B,) into `WORDS` for each image: its class, a look-alike, or its family."""
    chance = rng.random(len(labels))
    words = np.empty(len(labels), dtype=np.int64)
    for row, label in enumerate(labels):
        it = CLASSES[label]
        word = it.family
        if chance[row] < it.kind.named + it.kind.mistaken:
            word = it.name if chance[row] < it.kind.named else it.look_alike
        words[row] = WORDS.index(word)
    return words


@dataclass(frozen=True)
class Corpus:
    """Parts of all captions, as positions in `used`, which is sorted. So end-of-text is the largest position.

    Attributes:
        contexts: Tokens before and after the words. Plain contexts are first.
        phrases: Tokens of the words, by word and color + 1.
        used: (V,) token ids.
        length: Length of the longest caption.
    """

    contexts: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    phrases: tuple[tuple[tuple[int, ...], ...], ...]
    used: Tensor
    length: int

    def tokens(self, contexts: Sequence[int], words: Sequence[int], colors: Sequence[int]) -> Tensor:
        """Return captions (B, L). `colors` counts from 1, and 0 means no color."""
        batch = torch.zeros(len(contexts), self.length, dtype=torch.long)
        for row, (context, word, color) in enumerate(zip(contexts, words, colors, strict=True)):
            before, after = self.contexts[context]
            caption = (*before, *self.phrases[word][color], *after)
            batch[row, : len(caption)] = torch.tensor(caption)
        return batch


def build_corpus(templates: Sequence[str], tokenize: Callable[[list[str]], Tensor]) -> Corpus:
    """Build all captions: the plain contexts, then the other `templates` (with "{}" for the words).

    The tokens of a caption are those of its parts, because the tokenizer splits at spaces and full stops.
    """

    def encode(texts: Sequence[str]) -> list[list[int]]:
        rows = tokenize(list(texts))
        return [row[1 : int(row.argmax())].tolist() for row in rows]

    names = [*PLAIN, *(context for context in dict.fromkeys(templates) if context not in PLAIN)]
    before, after = (encode([name.split("{}")[side].strip() for name in names]) for side in (0, 1))
    phrases = [encode([word, *(f"{color} {word}" for color in COLORS)]) for word in WORDS]
    first, last = 49406, 49407  # start and end of text
    parts = [*before, *after, *(p for row in phrases for p in row)]
    # 0 pads captions after the end
    used = torch.tensor(sorted({0, first, last, *(token for part in parts for token in part)}))
    position = {int(token): k for k, token in enumerate(used)}

    def positions(part: Sequence[int]) -> tuple[int, ...]:
        return tuple(position[token] for token in part)

    longest = max(len(p) for row in phrases for p in row)
    length = 2 + longest + max(len(b) + len(a) for b, a in zip(before, after, strict=True))
    return Corpus(
        tuple((positions([first, *b]), positions([*a, last])) for b, a in zip(before, after, strict=True)),
        tuple(tuple(positions(p) for p in row) for row in phrases),
        used,
        length,
    )
