"""Custom dataset: circles in eight colors, each drawn when it is read.

PYTHONPATH=examples prometar search --dataset circles:Circles --backbone mini
`train` has no --backbone option, so set backbone.name:
PYTHONPATH=examples prometar train --dataset circles:Circles --set backbone.name=mini --set data.args.size=96
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from prometar.data.datasets.dataset import Dataset, Item

COLORS = ("blue", "green", "orange", "purple", "red", "yellow", "brown", "gray")


@dataclass(frozen=True)
class Drawings:
    """Source that draws a PNG image for a path such as "red/3". Picklable: each worker receives a copy."""

    size: int

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        return [self._draw(*path.split("/")) for path in paths]

    def _draw(self, color: str, number: str) -> bytes:
        image = Image.new("RGB", (self.size, self.size), "white")
        png = io.BytesIO()
        left, top = divmod(int(number), 4)  # its own position, so no two images are equal
        ImageDraw.Draw(image).ellipse((left, top, left + self.size // 2, top + self.size // 2), color)
        image.save(png, "PNG")
        return png.getvalue()


@dataclass(frozen=True)
class Circles:
    """Dataset loader, called with the value of --data-root. `size` (pixels) is `data.args.size`."""

    size: int = 64

    def __call__(self, root: str | None) -> Dataset:
        train, val, test = (
            tuple(Item(f"{color}/{n}", label, color) for label, color in enumerate(COLORS) for n in numbers)
            for numbers in (range(8), range(8, 12), range(12, 16))
        )
        return Dataset("circles", "Circles", train, val, test, Drawings(self.size), "a photo of a {} circle.")
