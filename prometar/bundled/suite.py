"""The rendered data sets by name. Adding one is adding a row."""

from __future__ import annotations

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

SUITE: dict[str, RenderedSet] = {
    each.name: each for each in (TEXTURES, FLAGS, LEAVES, CELLS, SHAPES, FABRICS, PLOTS, TERRAIN, SKETCHES)
}
