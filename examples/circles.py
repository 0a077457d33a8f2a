"""Custom dataset: circles in eight colors, drawn on access.

PYTHONPATH=examples prometar search --dataset circles:Circles --backbone mini
PYTHONPATH=examples prometar train --dataset circles:Circles --set data.args.size=96
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from prometar.data.datasets.dataset import Dataset, Item

COLORS = ("blue", "green", "orange", "purple", "red", "yellow", "brown", "gray")


@dataclass(frozen=True)
class Drawings:
    """Image source that draws PNG images by path. Workers on other machines get a copy."""

    size: int

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        return [self._read(*path.split("/")) for path in paths]

    def _read(self, color: str, number: str) -> bytes:
        image, file, low = Image.new("RGB", (self.size, self.size), "white"), io.BytesIO(), int(number) % 9
        ImageDraw.Draw(image).ellipse((low, low, low + self.size // 2, low + self.size // 2), color)
        image.save(file, "PNG")
        return file.getvalue()


@dataclass(frozen=True)
class Circles:
    """Dataset loader: a call with the data root returns train, validation and test images."""

    size: int = 64

    def __call__(self, root: str | None) -> Dataset:
        train, val, test = (
            tuple(Item(f"{name}/{k}", label, name) for label, name in enumerate(COLORS) for k in range(a, b))
            for a, b in ((0, 8), (8, 12), (12, 16))
        )
        return Dataset("circles", "Circles", train, val, test, Drawings(self.size), "a photo of a {} circle.")
