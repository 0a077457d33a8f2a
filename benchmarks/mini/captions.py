"""Web-like captions for pre-training `mini`. They rarely name the class and sometimes name a wrong one.

Most captions use a broad word for a family of classes, some the class name, and some the name of a similar
class. Fine-grained names are therefore poorly aligned with images, as in CLIP.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .pretrain_vision import COLORS
from .world import CLASSES, WORDS

PLAIN: tuple[str, ...] = ("a photo of a {}.", "a photo of the {}.", "a photo of one {}.", "a photo of my {}.")
"""Plain contexts."""


@dataclass(frozen=True)
class CaptionSettings:
    """Shares of captions.

    Args:
        color: Share with a color before the word.
        plain_share: Share with a plain context ("a photo of a ...").
    """

    color: float = 0.5
    plain_share: float = 0.3


def draw_words(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw the word of each caption: the name of the class, of its look-alike, or of its family.

    Args:
        labels: (B,) indices into `CLASSES`.
        rng: Generator that draws one number per caption.

    Returns:
        (B,) indices into `WORDS`.
    """
    chance = rng.random(len(labels))
    words = np.empty(len(labels), dtype=np.int64)
    for row, label in enumerate(labels):
        pictured = CLASSES[label]
        kind = pictured.kind
        if chance[row] < kind.named:
            word = pictured.name
        elif chance[row] < kind.named + kind.mistaken:
            word = pictured.look_alike
        else:
            word = pictured.family
        words[row] = WORDS.index(word)
    return words


@dataclass(frozen=True)
class Corpus:
    """Parts from which all captions are composed.

    A token is stored as its position in `used`. End-of-text has the largest position, because it has the
    largest id in CLIP's vocabulary and `used` is sorted.

    Args:
        contexts: Tokens before and after the words of each context, including start and end of text. Plain
            contexts are first.
        phrases: Tokens of each word of `WORDS`: without a color, then with each color of `COLORS`.
        used: (V,) token ids in ascending order.
        length: Maximum number of tokens of a caption.
    """

    contexts: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    phrases: tuple[tuple[tuple[int, ...], ...], ...]
    used: Tensor
    length: int

    def tokens(self, contexts: Sequence[int], words: Sequence[int], colors: Sequence[int]) -> Tensor:
        """Compose captions.

        Args:
            contexts: B indices into the contexts.
            words: B indices into `WORDS`.
            colors: B indices into `COLORS`, plus 1. 0 means no color.

        Returns:
            (B, L) positions in `used`. Captions are padded with 0.
        """
        batch = torch.zeros(len(contexts), self.length, dtype=torch.long)
        for row, (context, word, color) in enumerate(zip(contexts, words, colors, strict=True)):
            before, after = self.contexts[context]
            caption = (*before, *self.phrases[word][color], *after)
            batch[row, : len(caption)] = torch.tensor(caption)
        return batch


def build_corpus(templates: Sequence[str], tokenize: Callable[[list[str]], Tensor]) -> Corpus:
    """Build the parts of all captions.

    The tokens of a caption are those of its parts, because the tokenizer splits at spaces and full stops.

    Args:
        templates: Contexts with "{}" for the words. Plain contexts are added.
        tokenize: Function that returns padded rows of token ids with start and end of text.
    """
    start_of_text = 49406
    end_of_text = 49407
    padding = 0

    def encode(texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, without start and end of text."""
        rows = tokenize(list(texts))
        return [row[1 : int(row.argmax())].tolist() for row in rows]  # end-of-text is the largest id

    others = [template for template in dict.fromkeys(templates) if template not in PLAIN]
    texts_before = []
    texts_after = []
    for template in (*PLAIN, *others):
        left, right = template.split("{}")
        texts_before.append(left.strip())
        texts_after.append(right.strip())
    before = encode(texts_before)
    after = encode(texts_after)
    phrases = [encode([word, *(f"{color} {word}" for color in COLORS)]) for word in WORDS]
    all_phrases = list(chain.from_iterable(phrases))

    used_ids = {padding, start_of_text, end_of_text}
    for part in (*before, *after, *all_phrases):
        used_ids.update(part)
    used = sorted(used_ids)
    position = {token: index for index, token in enumerate(used)}

    def positions(part: Sequence[int]) -> tuple[int, ...]:
        """Return the positions of tokens in `used`."""
        return tuple(position[token] for token in part)

    contexts = tuple(
        (positions([start_of_text, *left]), positions([*right, end_of_text]))
        for left, right in zip(before, after, strict=True)
    )
    longest_context = max(len(left) + len(right) for left, right in contexts)
    longest_phrase = max(map(len, all_phrases))
    return Corpus(
        contexts=contexts,
        phrases=tuple(tuple(positions(phrase) for phrase in row) for row in phrases),
        used=torch.tensor(used),
        length=longest_context + longest_phrase,
    )
