"""The rendered data sets by name. Adding one is adding a row."""

from collections.abc import Iterable
from typing import Any

from prometar.bundled.cells import CELLS
from prometar.bundled.dataset import RenderedSet
from prometar.bundled.fabrics import FABRICS
from prometar.bundled.flags import FLAGS
from prometar.bundled.leaves import LEAVES
from prometar.bundled.plots import PLOTS
from prometar.bundled.shapes import SHAPES
from prometar.bundled.sketches import SKETCHES
from prometar.bundled.terrain import TERRAIN
from prometar.bundled.textures import TEXTURES

SUITE: dict[str, RenderedSet[Any]] = {
    each.name: each for each in (TEXTURES, FLAGS, LEAVES, CELLS, SHAPES, FABRICS, PLOTS, TERRAIN, SKETCHES)
}


def default_backbone(
    datasets: Iterable[str], backbone: str | None, pretrained: str | None
) -> tuple[str, str | None]:
    """The backbone and its weights, where they are not given: the embedded one if all data sets are embedded.

    Example:
        >>> default_backbone(["flags"], None, None), default_backbone(["flags", "dtd"], None, None)
        (('mini', None), ('ViT-B-16-quickgelu', 'openai'))
    """
    name = backbone or ("mini" if SUITE.keys() >= set(datasets) else "ViT-B-16-quickgelu")
    return name, pretrained or (None if name == "mini" else "openai")
