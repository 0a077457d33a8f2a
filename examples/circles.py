"""A data set of one's own: circles in eight colours, drawn when they are read.

PYTHONPATH=examples python tune/search.py --dataset circles:Circles --backbone mini
PYTHONPATH=examples prometar train --set data.name=circles:Circles --set data.args.size=96
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from prometar.data.datasets.dataset import Dataset, Item

COLOURS = ("blue", "green", "orange", "purple", "red", "yellow", "brown", "gray")


@dataclass(frozen=True)
class Drawn:
    """Encoded images by path; workers on other machines hold a copy of this."""

    size: int

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        return [self._read(*path.split("/")) for path in paths]

    def _read(self, colour: str, number: str) -> bytes:
        image, file, left = Image.new("RGB", (self.size, self.size), "white"), io.BytesIO(), int(number) % 9
        ImageDraw.Draw(image).ellipse((left, left, left + self.size // 2, left + self.size // 2), colour)
        image.save(file, "PNG")
        return file.getvalue()


@dataclass(frozen=True)
class Circles:
    """The loader: called with --data-root, it returns the three splits."""

    size: int = 64

    def __call__(self, root: str | None) -> Dataset:
        train, val, test = (
            tuple(Item(f"{name}/{k}", label, name) for label, name in enumerate(COLOURS) for k in range(a, b))
            for a, b in ((0, 8), (8, 12), (12, 16))
        )
        return Dataset("circles", "Circles", train, val, test, Drawn(self.size), "a photo of a {} circle.")
