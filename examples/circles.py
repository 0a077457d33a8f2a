"""Custom dataset: circles in eight colors, each drawn when it is read.

# Search settings on this dataset.
PYTHONPATH=examples prometar search --dataset circles:Circles --backbone mini

# Train one run with larger images. `train` has no option --backbone, so the command sets backbone.name.
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
    """Source that draws an image for a path such as "red/3". It can be pickled, as each worker gets a copy.

    Args:
        size: Width and height in pixels.
    """

    size: int

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        """Return the images at some paths, encoded as PNG."""
        return [self._draw(path) for path in paths]

    def _draw(self, path: str) -> bytes:
        color, number = path.split("/")
        left, top = divmod(int(number), 4)  # each number has another position, so no two images are equal
        diameter = self.size // 2
        image = Image.new("RGB", (self.size, self.size), "white")
        ImageDraw.Draw(image).ellipse((left, top, left + diameter, top + diameter), color)
        png = io.BytesIO()
        image.save(png, "PNG")
        return png.getvalue()


@dataclass(frozen=True)
class Circles:
    """Dataset loader, called with the value of --data-root, which these drawings do not need.

    Args:
        size: Width and height in pixels. It is the setting `data.args.size`.
    """

    size: int = 64

    def __call__(self, root: str | None) -> Dataset:
        """Return the dataset: 8 training, 4 validation and 4 test images per color."""
        return Dataset(
            name="circles",
            title="Circles",
            train=items(range(8)),
            val=items(range(8, 12)),
            test=items(range(12, 16)),
            source=Drawings(self.size),
            template="a photo of a {} circle.",
        )


def items(numbers: range) -> tuple[Item, ...]:
    """Return one item per color and number. The class of an item is its color."""
    drawings: list[Item] = []
    for label, color in enumerate(COLORS):
        drawings += [Item(f"{color}/{number}", label, color) for number in numbers]
    return tuple(drawings)
