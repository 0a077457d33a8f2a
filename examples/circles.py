"""Custom dataset: circles in eight colors, drawn when they are read.

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
        return [self._draw(*path.split("/")) for path in paths]

    def _draw(self, color: str, number: str) -> bytes:
        image, file, left = Image.new("RGB", (self.size, self.size), "white"), io.BytesIO(), int(number) % 9
        ImageDraw.Draw(image).ellipse((left, left, left + self.size // 2, left + self.size // 2), color)
        image.save(file, "PNG")
        return file.getvalue()


@dataclass(frozen=True)
class Circles:
    """Dataset loader, called with the value of --data-root. `size` is the setting `data.args.size`."""

    size: int = 64

    def __call__(self, root: str | None) -> Dataset:
        train, val, test = (
            tuple(Item(f"{name}/{k}", label, name) for label, name in enumerate(COLORS) for k in range(a, b))
            for a, b in ((0, 8), (8, 12), (12, 16))
        )
        return Dataset("circles", "Circles", train, val, test, Drawings(self.size), "a photo of a {} circle.")
