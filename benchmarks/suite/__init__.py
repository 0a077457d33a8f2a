"""Rendered datasets besides those of the package, as custom datasets.

With `benchmarks` on PYTHONPATH: `--dataset suite:flags --backbone mini`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from prometar.data.datasets.catalog import rendered_dataset
from prometar.data.datasets.dataset import Dataset
from prometar.embedded.cells import CELLS
from prometar.embedded.rendered import RenderedSet
from prometar.embedded.textures import TEXTURES

from .fabrics import FABRICS
from .flags import FLAGS
from .leaves import LEAVES
from .plots import PLOTS
from .shapes import SHAPES
from .sketches import SKETCHES
from .terrain import TERRAIN

SETS: dict[str, RenderedSet[Any]] = {
    each.name: each for each in (TEXTURES, FLAGS, LEAVES, CELLS, SHAPES, FABRICS, PLOTS, TERRAIN, SKETCHES)
}


@dataclass(frozen=True)
class SuiteSource:
    """Images of the dataset `name`, rendered when they are read."""

    name: str

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        return [_rendered(self.name, path) for path in paths]


@cache
def _rendered(name: str, path: str) -> bytes:
    return SETS[name].encode(path)


def _open(name: str, root: str | None) -> Dataset:
    return rendered_dataset(SETS[name], SuiteSource(name))


# Functions that `--dataset suite:NAME` calls.
fabrics = partial(_open, "fabrics")
flags = partial(_open, "flags")
leaves = partial(_open, "leaves")
plots = partial(_open, "plots")
shapes = partial(_open, "shapes")
sketches = partial(_open, "sketches")
terrain = partial(_open, "terrain")
