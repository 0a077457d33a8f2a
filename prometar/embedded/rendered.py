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
        name: Name for `--dataset`.
        template: Template of zero-shot prompts.
        counts: Number of images per class, by split.
        draw: Function of (motif, random generator, side in pixels) that returns pixels (side, side, 3).
        families: Motifs by class name, grouped into families of similar classes.
        salted: True if pixels depend on the dataset's name. False for `textures`, which keeps the pixels of
            earlier releases.
    """

    name: str
    template: str
    counts: Mapping[str, int]
    draw: Callable[[Motif, np.random.Generator, int], Pixels]
    families: Mapping[str, Mapping[str, Motif]]
    salted: bool = True

    @property
    def title(self) -> str:
        """Name in tables."""
        return f"{self.name.capitalize()} (rendered)"

    @cached_property
    def motifs(self) -> dict[str, Motif]:
        """Motifs of all families by class name."""
        motifs: dict[str, Motif] = {}
        for family in self.families.values():
            motifs.update(family)
        return motifs

    @property
    def classnames(self) -> tuple[str, ...]:
        """Class names in label order, which is alphabetical."""
        return tuple(sorted(self.motifs))

    def render(self, classname: str, seed: int, size: int = SIZE) -> Pixels:
        """Return the image of a class.

        Args:
            seed: Seed of the image (see `FIRST_SEEDS`).
            size: Side of the image in pixels. Default: 64.
        """
        # A class's seed depends on its name, not on its label, so that a new class changes no other images.
        key = f"{self.name}/{classname}" if self.salted else classname
        class_seed = zlib.crc32(key.encode())
        rng = np.random.Generator(np.random.PCG64([class_seed, seed]))
        return self.draw(self.motifs[classname], rng, size)

    def paths(self, split: str) -> tuple[str, ...]:
        """Return the paths of a split ("train", "val" or "test"), ordered by class."""
        paths: list[str] = []
        for name in self.classnames:
            paths += [image_path(name, split, index) for index in range(self.counts[split])]
        return tuple(paths)

    @cached_property
    def _seeds(self) -> dict[str, int]:
        """Image seeds by path."""
        seeds: dict[str, int] = {}
        for split, count in self.counts.items():
            for classname in self.classnames:
                for index in range(count):
                    seeds[image_path(classname, split, index)] = FIRST_SEEDS[split] + index
        return seeds

    def locate(self, path: str) -> tuple[str, int]:
        """Return the class and the image seed of a path.

        Raises:
            UserError: no image has this path.
        """
        if path not in self._seeds:
            example = self.paths("train")[0]
            raise UserError(f"{self.name} has no image {path!r}. Paths look like {example!r}.")
        classname, _, _ = path.partition("/")
        return classname, self._seeds[path]

    def encode(self, path: str) -> bytes:
        """Return the image at a path as a PNG file. Its bytes depend on the zlib version, its pixels do not.

        Raises:
            UserError: no image has this path.
        """
        classname, seed = self.locate(path)
        image = Image.fromarray(self.render(classname, seed))
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", compress_level=1)
        return buffer.getvalue()


def image_path(classname: str, split: str, index: int) -> str:
    """Return the path of an image, such as "grid/train_0003.png"."""
    return f"{classname}/{split}_{index:04d}.png"
