"""`terrain`: 10 kinds of land use seen from above, like EuroSAT. Unlike the pre-training images of `mini`."""

from collections.abc import Callable

import numpy as np

from prometar.embedded.canvas import Canvas, Floats, edge, fractal, integer_offset, noise, voronoi
from prometar.embedded.paint import Pixels, blend, quantize, vary_color
from prometar.embedded.rendered import RenderedSet

_GRASS, _SOIL, _SAND, _WATER = (0.35, 0.45, 0.25), (0.5, 0.42, 0.32), (0.75, 0.66, 0.5), (0.12, 0.22, 0.3)
_TREES, _ROAD, _ROOF = (0.13, 0.25, 0.14), (0.5, 0.5, 0.5), (0.72, 0.68, 0.66)


def _fields(c: Canvas) -> Floats:
    """Return patches of farm land (H, W, 3), the background of most scenes."""
    _, _, owner = voronoi(c, spacing=2.2, jitter=0.45)
    mix = c.rng.random(owner.max() + 1)[owner]
    return (
        blend(vary_color(c.rng, _GRASS), vary_color(c.rng, _SOIL), mix * 0.8)
        + 0.03 * noise(c.rng, c.size, 8)[:, :, None]
    )


def _cropland(c: Canvas) -> Floats:
    _, _, owner = voronoi(c, spacing=2.6, jitter=0.3)
    count = owner.max() + 1
    mix, angle = c.rng.random(count)[owner], c.rng.uniform(0, np.pi, count)[owner]
    rows = 0.5 + 0.5 * np.sin((c.x * np.cos(angle) + c.y * np.sin(angle)) * 9.0)
    return blend(
        vary_color(c.rng, (0.3, 0.46, 0.16)),
        vary_color(c.rng, (0.68, 0.58, 0.4)),
        np.clip(mix + 0.5 * (rows - 0.5), 0, 1),
    )


def _desert(c: Canvas) -> Floats:
    dunes = 0.5 + 0.5 * np.sin(c.x * 3.0 + 1.2 * fractal(c.rng, c.size, 2.0))
    return blend(vary_color(c.rng, _SAND), vary_color(c.rng, (0.6, 0.48, 0.35)), dunes * 0.6)


def _roofs(c: Canvas, spacing: float, half: tuple[float, float], keep: float) -> Floats:
    """Return ink (H, W) of rectangular roofs on a grid."""
    column, row = np.floor(c.x / spacing), np.floor(c.y / spacing)
    table = c.rng.random((16, 16, 3))
    draw = table[column.astype(np.int64) % 16, row.astype(np.int64) % 16]
    wide = half[0] + (half[1] - half[0]) * draw[..., 0]
    high = half[0] + (half[1] - half[0]) * draw[..., 1]
    inside = np.minimum(
        wide - np.abs(c.x - (column + 0.5) * spacing), high - np.abs(c.y - (row + 0.5) * spacing)
    )
    return c.ink(inside) * (draw[..., 2] < keep)


def _factory(c: Canvas) -> Floats:
    yard = blend(vary_color(c.rng, _ROAD), vary_color(c.rng, _SOIL), 0.5 + 0.3 * fractal(c.rng, c.size, 3.0))
    return blend(yard, vary_color(c.rng, (0.82, 0.82, 0.85)), _roofs(c, 2.6, (0.7, 1.25), 0.8))


def _forest(c: Canvas) -> Floats:
    near_, _, _ = voronoi(c, spacing=0.55, jitter=0.45)
    crown = np.exp(-((near_ / 0.22) ** 2))
    return blend(vary_color(c.rng, (0.06, 0.13, 0.08), 0.04), vary_color(c.rng, (0.2, 0.36, 0.18)), crown)


def _highway(c: Canvas) -> Floats:
    bend = c.x - c.x.mean() + c.rng.uniform(-0.06, 0.06) * (c.y - c.y.mean()) ** 2
    lanes = c.ink(0.5 - np.abs(bend)) * c.ink(np.abs(bend) - 0.07)
    return blend(_fields(c), vary_color(c.rng, (0.62, 0.61, 0.6)), lanes)


def _lake(c: Canvas) -> Floats:
    middle = np.hypot(c.x - c.x.mean(), c.y - c.y.mean()) / c.tiles
    depth = c.rng.uniform(0.3, 0.42) + 0.08 * noise(c.rng, c.size, 1.5) - middle
    return blend(_fields(c), vary_color(c.rng, _WATER, 0.05), edge(depth, 0.03))


def _orchard(c: Canvas) -> Floats:
    crown = np.exp(-((np.hypot(integer_offset(c.x * 1.3), integer_offset(c.y * 1.3)) / 0.26) ** 2))
    return blend(vary_color(c.rng, (0.52, 0.47, 0.33)), vary_color(c.rng, _TREES), crown)


def _pasture(c: Canvas) -> Floats:
    tone = 0.5 + 0.35 * fractal(c.rng, c.size, 2.0)
    image = blend(vary_color(c.rng, (0.38, 0.52, 0.25)), vary_color(c.rng, (0.52, 0.56, 0.32)), tone)
    near_, _, _ = voronoi(c, spacing=2.4, jitter=0.5)
    return blend(image, vary_color(c.rng, _TREES), edge(0.22 - near_, 0.15))


def _river(c: Canvas) -> Floats:
    across = c.x - c.x.mean() + 1.1 * np.sin(c.y * c.rng.uniform(0.5, 0.9)) + 0.3 * noise(c.rng, c.size, 2)
    return blend(
        _fields(c), vary_color(c.rng, _WATER, 0.05), edge(c.rng.uniform(0.35, 0.65) - np.abs(across), 0.12)
    )


def _village(c: Canvas) -> Floats:
    gardens = blend(vary_color(c.rng, _GRASS), vary_color(c.rng, _TREES), edge(noise(c.rng, c.size, 6), 1.0))
    streets = np.maximum(
        edge(0.12 - np.abs(integer_offset(c.x / 2.4)), 0.04),
        edge(0.1 - np.abs(integer_offset(c.y / 3.2)), 0.04),
    )
    image = blend(gardens, vary_color(c.rng, _ROAD), streets)
    return blend(
        image, vary_color(c.rng, c.rng.choice(((0.6, 0.35, 0.28), _ROOF))), _roofs(c, 0.8, (0.18, 0.32), 0.85)
    )


def _draw(scene: Callable[[Canvas], Floats], rng: np.random.Generator, size: int) -> Pixels:
    canvas = Canvas.pattern(rng, size, float(np.exp(rng.uniform(1.7, 2.2))), turn=np.pi, warp=0.1)
    image = scene(canvas)
    haze = rng.uniform(0.0, 0.35)  # of the atmosphere
    image = image * (1.0 - haze) + haze * np.array((0.62, 0.66, 0.72))
    light = 1.0 + 0.06 * noise(rng, size, 2)[:, :, None]
    return quantize(image * light * rng.uniform(0.85, 1.15) + 0.025 * rng.standard_normal((size, size, 1)))


TERRAIN = RenderedSet(
    name="terrain",
    template="a satellite photo of a {}.",
    counts={"train": 32, "val": 20, "test": 120},
    draw=_draw,
    families={
        "rural": {
            "cropland": _cropland,
            "desert": _desert,
            "forest": _forest,
            "orchard": _orchard,
            "pasture": _pasture,
        },
        "water": {"lake": _lake, "river": _river},
        "urban": {"factory": _factory, "highway": _highway, "village": _village},
    },
)
