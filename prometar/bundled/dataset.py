"""A data set that is rendered on demand: equal arguments give equal pixels.

Items are addressed by a path, "<class>/<split>_<index>.png"; a path decides its pixels. Classes are in
alphabetical order: the first half is the base half, the rest the new one.
"""

import io
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, Literal, TypeVar

import numpy as np
from PIL import Image

from prometar.bundled.paint import Pixels
from prometar.errors import UserError

SIZE = 64  # pixels
FIRST_SEED: dict[str, int] = {"train": 0, "val": 100_000, "test": 200_000, "pretrain": 1_000_000}
"""A split's images use seeds FIRST_SEED[split] + index. `pretrain` has no end, so it comes last."""

T = TypeVar("T")
"""What draws a class, as its data set keeps it: a function, strokes, a name."""

_PATH = re.compile(r"(?P<name>[a-z-]+)/(?P<split>[a-z]+)_(?P<index>\d{4,6})\.png")


@dataclass(frozen=True)
class RenderedSet(Generic[T]):
    """A rendered data set.

    Args:
        name: What `--dataset` takes.
        template: Zero-shot prompt.
        purpose: `development`: may be looked at while methods are made; `claim`: kept for the last table.
        counts: Images a class, by split.
        draw: Draws an image: (what draws the class, generator, side) -> (side, side, 3) pixels.
        families: The classes and what draws each, by broad words for them that pre-training's captions use.
        wild: `draw` in pre-training, where that is harder: anywhere, turned, bent, cluttered.
        salted: See `salt`.
    """

    name: str
    template: str
    purpose: Literal["development", "claim"]
    counts: Mapping[str, int]
    draw: Callable[[T, np.random.Generator, int], Pixels]
    families: Mapping[str, Mapping[str, T]]
    wild: Callable[[T, np.random.Generator, int], Pixels] | None = None
    salted: bool = True

    @property
    def title(self) -> str:
        """The name in tables."""
        return f"{self.name.capitalize()} (embedded)"

    @property
    def salt(self) -> str:
        """Enters every seed, so that classes of one name in two sets differ; empty for the first set."""
        return f"{self.name}/" if self.salted else ""

    @cached_property
    def drawings(self) -> dict[str, T]:
        """What draws each class, by its name."""
        return {name: drawing for members in self.families.values() for name, drawing in members.items()}

    @property
    def classnames(self) -> tuple[str, ...]:
        """Class names in the order of their labels."""
        return tuple(sorted(self.drawings))

    def render(self, classname: str, seed: int, size: int = SIZE, *, wild: bool = False) -> Pixels:
        """Draw one image of a class: uint8 (size, size, 3).

        Args:
            seed: Decides colours, scale, rotation, lighting and all else that varies.
            size: Side in pixels (default 64).
            wild: As in pre-training.
        Raises:
            UserError: unknown class.
        """
        if classname not in self.drawings:
            raise UserError(f"{self.name} has no class {classname!r}; it has {', '.join(self.classnames)}")
        # the name, not its position, enters the seed: a further class leaves the others as they are
        word = zlib.crc32((self.salt + classname).encode())
        rng = np.random.Generator(np.random.PCG64([word, seed]))
        draw = self.wild if wild and self.wild else self.draw
        return draw(self.drawings[classname], rng, size)

    def paths(self, split: str) -> tuple[str, ...]:
        """Every path of a split ("train", "val", "test"), class by class."""
        if split not in self.counts:
            raise UserError(f"{self.name} has no split {split!r}; it has {', '.join(self.counts)}")
        numbers = range(self.counts[split])
        return tuple(item_path(name, split, index) for name in self.classnames for index in numbers)

    def locate(self, path: str) -> tuple[str, int]:
        """The class and the seed behind a path.

        Raises:
            UserError: not a path of this data set.
        """
        match = _PATH.fullmatch(path)
        name, split, index = (match["name"], match["split"], int(match["index"])) if match else ("", "", 0)
        if name not in self.drawings or split not in FIRST_SEED:
            why = f"its paths look like '{item_path(self.classnames[0], 'train', 3)}'"
        elif item_path(name, split, index) != path:
            why = "an index has leading zeros up to four digits only"
        elif index >= self.counts.get(split, 1_000_000):
            why = f"{split} ends at {self.counts[split] - 1}"
        else:
            return name, FIRST_SEED[split] + index
        raise UserError(f"{self.name} has no image {path!r}; {why}")

    def encode(self, path: str) -> bytes:
        """An item as a PNG file; the bytes depend on the zlib in use, the pixels do not."""
        buffer = io.BytesIO()
        Image.fromarray(self.render(*self.locate(path))).save(buffer, format="PNG", compress_level=1)
        return buffer.getvalue()


def item_path(classname: str, split: str, index: int) -> str:
    """The path of an item: item_path("grid", "train", 3) == "grid/train_0003.png"."""
    return f"{classname}/{split}_{index:04d}.png"
