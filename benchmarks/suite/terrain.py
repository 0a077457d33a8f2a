"""`terrain`: 10 kinds of land use seen from above, like EuroSAT. Unlike the pre-training images of `mini`."""

from collections.abc import Callable

import numpy as np

from prometar.embedded.canvas import Canvas, Floats, edge, fractal, integer_offset, noise, voronoi
from prometar.embedded.paint import Pixels, blend, quantize, vary_color
from prometar.embedded.rendered import RenderedSet

# RGB
_GRASS = (0.35, 0.45, 0.25)
_SOIL = (0.5, 0.42, 0.32)
_SAND = (0.75, 0.66, 0.5)
_WATER = (0.12, 0.22, 0.3)
_TREES = (0.13, 0.25, 0.14)
_ROAD = (0.5, 0.5, 0.5)
_ROOF = (0.72, 0.68, 0.66)
_TILED_ROOF = (0.6, 0.35, 0.28)


def _fields(canvas: Canvas) -> Floats:
    """Return patches of farm land (H, W, 3), the background of most scenes."""
    _, _, owner = voronoi(canvas, spacing=2.2, jitter=0.45)
    mix = canvas.rng.random(owner.max() + 1)[owner]  # one value per field
    grass = vary_color(canvas.rng, _GRASS)
    soil = vary_color(canvas.rng, _SOIL)
    return blend(grass, soil, mix * 0.8) + 0.03 * noise(canvas.rng, canvas.size, 8)[:, :, None]


def _cropland(canvas: Canvas) -> Floats:
    _, _, owner = voronoi(canvas, spacing=2.6, jitter=0.3)
    count = owner.max() + 1
    mix = canvas.rng.random(count)[owner]  # one value per field
    angle = canvas.rng.uniform(0, np.pi, count)[owner]
    rows = 0.5 + 0.5 * np.sin((canvas.x * np.cos(angle) + canvas.y * np.sin(angle)) * 9.0)
    green = vary_color(canvas.rng, (0.3, 0.46, 0.16))
    ripe = vary_color(canvas.rng, (0.68, 0.58, 0.4))
    return blend(green, ripe, np.clip(mix + 0.5 * (rows - 0.5), 0, 1))


def _desert(canvas: Canvas) -> Floats:
    dunes = 0.5 + 0.5 * np.sin(canvas.x * 3.0 + 1.2 * fractal(canvas.rng, canvas.size, 2.0))
    light = vary_color(canvas.rng, _SAND)
    dark = vary_color(canvas.rng, (0.6, 0.48, 0.35))
    return blend(light, dark, dunes * 0.6)


def _roofs(canvas: Canvas, spacing: float, half_side: tuple[float, float], keep: float) -> Floats:
    """Return ink (H, W) of rectangular roofs on a grid, each with probability `keep`.

    Args:
        spacing: Distance between the middles of neighboring roofs, in tiles.
        half_side: Range of half the sides of a roof, in tiles.
    """
    column = np.floor(canvas.x / spacing)
    row = np.floor(canvas.y / spacing)
    # Each roof has three random numbers, for its width, its height and its existence.
    table = canvas.rng.random((16, 16, 3))
    numbers = table[column.astype(np.int64) % 16, row.astype(np.int64) % 16]
    low, high = half_side
    half_width = low + (high - low) * numbers[..., 0]
    half_height = low + (high - low) * numbers[..., 1]
    inside_x = half_width - np.abs(canvas.x - (column + 0.5) * spacing)
    inside_y = half_height - np.abs(canvas.y - (row + 0.5) * spacing)
    return canvas.ink(np.minimum(inside_x, inside_y)) * (numbers[..., 2] < keep)


def _factory(canvas: Canvas) -> Floats:
    road = vary_color(canvas.rng, _ROAD)
    soil = vary_color(canvas.rng, _SOIL)
    yard = blend(road, soil, 0.5 + 0.3 * fractal(canvas.rng, canvas.size, 3.0))
    roof = vary_color(canvas.rng, (0.82, 0.82, 0.85))
    return blend(yard, roof, _roofs(canvas, 2.6, (0.7, 1.25), 0.8))


def _forest(canvas: Canvas) -> Floats:
    distance, _, _ = voronoi(canvas, spacing=0.55, jitter=0.45)
    crowns = np.exp(-((distance / 0.22) ** 2))
    shade = vary_color(canvas.rng, (0.06, 0.13, 0.08), 0.04)
    leaves = vary_color(canvas.rng, (0.2, 0.36, 0.18))
    return blend(shade, leaves, crowns)


def _highway(canvas: Canvas) -> Floats:
    bend = canvas.rng.uniform(-0.06, 0.06)
    across = canvas.x - canvas.x.mean() + bend * (canvas.y - canvas.y.mean()) ** 2
    lanes = canvas.ink(0.5 - np.abs(across)) * canvas.ink(np.abs(across) - 0.07)
    return blend(_fields(canvas), vary_color(canvas.rng, (0.62, 0.61, 0.6)), lanes)


def _lake(canvas: Canvas) -> Floats:
    distance = np.hypot(canvas.x - canvas.x.mean(), canvas.y - canvas.y.mean()) / canvas.tiles
    depth = canvas.rng.uniform(0.3, 0.42) + 0.08 * noise(canvas.rng, canvas.size, 1.5) - distance
    return blend(_fields(canvas), vary_color(canvas.rng, _WATER, 0.05), edge(depth, 0.03))


def _orchard(canvas: Canvas) -> Floats:
    distance = np.hypot(integer_offset(canvas.x * 1.3), integer_offset(canvas.y * 1.3))
    crowns = np.exp(-((distance / 0.26) ** 2))
    earth = vary_color(canvas.rng, (0.52, 0.47, 0.33))
    trees = vary_color(canvas.rng, _TREES)
    return blend(earth, trees, crowns)


def _pasture(canvas: Canvas) -> Floats:
    tone = 0.5 + 0.35 * fractal(canvas.rng, canvas.size, 2.0)
    green = vary_color(canvas.rng, (0.38, 0.52, 0.25))
    dry = vary_color(canvas.rng, (0.52, 0.56, 0.32))
    distance, _, _ = voronoi(canvas, spacing=2.4, jitter=0.5)
    trees = edge(0.22 - distance, 0.15)
    return blend(blend(green, dry, tone), vary_color(canvas.rng, _TREES), trees)


def _river(canvas: Canvas) -> Floats:
    bends = 1.1 * np.sin(canvas.y * canvas.rng.uniform(0.5, 0.9))
    across = canvas.x - canvas.x.mean() + bends + 0.3 * noise(canvas.rng, canvas.size, 2)
    fields = _fields(canvas)
    water = vary_color(canvas.rng, _WATER, 0.05)
    half_width = canvas.rng.uniform(0.35, 0.65)
    return blend(fields, water, edge(half_width - np.abs(across), 0.12))


def _village(canvas: Canvas) -> Floats:
    grass = vary_color(canvas.rng, _GRASS)
    trees = vary_color(canvas.rng, _TREES)
    gardens = blend(grass, trees, edge(noise(canvas.rng, canvas.size, 6), 1.0))
    upright = edge(0.12 - np.abs(integer_offset(canvas.x / 2.4)), 0.04)
    level = edge(0.1 - np.abs(integer_offset(canvas.y / 3.2)), 0.04)
    image = blend(gardens, vary_color(canvas.rng, _ROAD), np.maximum(upright, level))
    roof = vary_color(canvas.rng, canvas.rng.choice((_TILED_ROOF, _ROOF)))
    return blend(image, roof, _roofs(canvas, 0.8, (0.18, 0.32), 0.85))


def _draw(scene: Callable[[Canvas], Floats], rng: np.random.Generator, size: int) -> Pixels:
    """Draw a scene (H, W, 3) through the haze of the atmosphere."""
    tiles = float(np.exp(rng.uniform(1.7, 2.2)))
    canvas = Canvas.pattern(rng, size, tiles, turn=np.pi, warp=0.1)
    image = scene(canvas)
    haze = rng.uniform(0.0, 0.35)
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
