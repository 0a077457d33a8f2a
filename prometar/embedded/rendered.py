"""Datasets of images that are rendered by code when they are read. A path always gives the same pixels."""

import io
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

import numpy as np
from PIL import Image

from prometar.embedded.paint import Pixels
from prometar.errors import UserError

SIZE = 64  # side of an image in pixels
FIRST_SEEDS: dict[str, int] = {"train": 0, "val": 100_000, "test": 200_000, "pretrain": 1_000_000}
"""Seed of image 0 of each class, by split. Image k has this seed + k. `mini` was trained on `pretrain`."""

Motif = TypeVar("Motif")
"""Type of the object that describes how a class is drawn, such as a function."""


@dataclass(frozen=True)
class RenderedSet(Generic[Motif]):
    """Dataset of rendered images. The path of an image, "<class>/<split>_<index>.png", determines its pixels.

    Args:
        template: Template of zero-shot prompts.
        counts: Number of images per class, by split.
        draw: Function (motif, generator, side) -> (side, side, 3) pixels.
        families: Motifs by class name, grouped into families of similar classes.
        salted: True if the dataset's name affects pixels. False for the older `textures`, to keep its pixels.
    """

    name: str
    template: str
    counts: Mapping[str, int]
    draw: Callable[[Motif, np.random.Generator, int], Pixels]
    families: Mapping[str, Mapping[str, Motif]]
    salted: bool = True

    @property
    def title(self) -> str:
        return f"{self.name.capitalize()} (rendered)"

    @cached_property
    def motifs(self) -> dict[str, Motif]:
        """Motifs of all families by class name."""
        return {name: motif for members in self.families.values() for name, motif in members.items()}

    @property
    def classnames(self) -> tuple[str, ...]:
        """Class names in label order, which is alphabetical."""
        return tuple(sorted(self.motifs))

    def render(self, classname: str, seed: int, size: int = SIZE) -> Pixels:
        """Draw the image of a class with the image seed `seed`."""
        # Class seeds depend on names, not on labels, so that a new class changes no image of other classes.
        class_seed = zlib.crc32((f"{self.name}/{classname}" if self.salted else classname).encode())
        rng = np.random.Generator(np.random.PCG64([class_seed, seed]))
        return self.draw(self.motifs[classname], rng, size)

    def paths(self, split: str) -> tuple[str, ...]:
        """Return the paths of a split ("train", "val" or "test"), ordered by class."""
        count = self.counts[split]
        return tuple(image_path(name, split, k) for name in self.classnames for k in range(count))

    @cached_property
    def _seeds(self) -> dict[str, int]:
        """Image seeds by path."""
        return {
            path: FIRST_SEEDS[split] + number % count
            for split, count in self.counts.items()
            for number, path in enumerate(self.paths(split))
        }

    def locate(self, path: str) -> tuple[str, int]:
        """Return the class and the image seed of a path.

        Raises:
            UserError: no image has this path.
        """
        if path in self._seeds:
            return path.partition("/")[0], self._seeds[path]
        raise UserError(f"{self.name} has no image {path!r}. Paths look like {self.paths('train')[0]!r}.")

    def encode(self, path: str) -> bytes:
        """Return an image as PNG. The bytes depend on the zlib version, but the pixels do not."""
        buffer = io.BytesIO()
        Image.fromarray(self.render(*self.locate(path))).save(buffer, format="PNG", compress_level=1)
        return buffer.getvalue()


def image_path(classname: str, split: str, index: int) -> str:
    """Return the path of an image, such as "grid/train_0003.png"."""
    return f"{classname}/{split}_{index:04d}.png"
