"""`shapes`: 16 plane figures, filled or outlined, on a patterned background."""

from dataclasses import replace
from functools import partial

import numpy as np

from prometar.embedded.canvas import Canvas, Floats, MakeCanvas, Shape, edge, fractal, segment_distance
from prometar.embedded.paint import Pixels, blend, contrasting_colors, light_and_quantize
from prometar.embedded.rendered import RenderedSet


def polygon(canvas: Canvas, corners: Floats) -> Floats:
    """Return the depth (H, W) in the polygon with the corners (N, 2)."""
    ends = np.roll(corners, -1, axis=0)
    distance = segment_distance(canvas, corners, ends)
    start_x = corners[:, 0, None, None]
    start_y = corners[:, 1, None, None]
    end_x = ends[:, 0, None, None]
    end_y = ends[:, 1, None, None]
    # A pixel is inside if the ray from it to the right crosses an odd number of sides.
    rise = np.where(end_y == start_y, 1e-12, end_y - start_y)
    crossing_x = start_x + (end_x - start_x) * (canvas.y - start_y) / rise
    crosses = ((start_y > canvas.y) != (end_y > canvas.y)) & (canvas.x < crossing_x)
    return np.where(np.logical_xor.reduce(crosses, axis=0), distance, -distance)


def regular(num_corners: int, turn: float = 0.0) -> Floats:
    """Return the corners (N, 2) of a regular polygon of radius 1.

    The first corner is at the top, turned clockwise by `turn` radians.
    """
    angle = np.arange(num_corners) * 2.0 * np.pi / num_corners + turn - np.pi / 2.0
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _polygon(corners: Floats) -> Shape:
    return lambda canvas: polygon(canvas, corners)


def _box(x: float, y: float) -> Floats:
    """Return the corners (4, 2) of the rectangle from (-x, -y) to (x, y)."""
    return np.array([(-x, -y), (x, -y), (x, y), (-x, y)])


def _circle(canvas: Canvas) -> Floats:
    return 0.9 - np.hypot(canvas.x, canvas.y)


def _ellipse(canvas: Canvas) -> Floats:
    height = canvas.rng.uniform(0.45, 0.65)
    return (1.0 - np.hypot(canvas.x, canvas.y / height)) * height


def _crescent(canvas: Canvas) -> Floats:
    disc = 0.95 - np.hypot(canvas.x, canvas.y)
    outside_bite = np.hypot(canvas.x - canvas.rng.uniform(0.35, 0.5), canvas.y) - 0.75
    return np.minimum(disc, outside_bite)


def _heart(canvas: Canvas) -> Floats:
    x = np.abs(canvas.x)
    y = -canvas.y + 0.1
    lobe = 0.5 - np.hypot(x - 0.42, y - 0.35)
    tip = np.minimum(0.92 - (x + np.abs(y - 0.1)) * 0.95, 0.35 - y)
    return np.maximum(lobe, tip)


def _ring(canvas: Canvas) -> Floats:
    half_width = canvas.rng.uniform(0.15, 0.25)
    return half_width - np.abs(np.hypot(canvas.x, canvas.y) - 0.7)


def _semicircle(canvas: Canvas) -> Floats:
    return np.minimum(0.95 - np.hypot(canvas.x, canvas.y - 0.4), 0.4 - canvas.y)


# Corners (N, 2).
_ARROW = np.array([(-0.95, -0.2), (0.1, -0.2), (0.1, -0.6), (0.95, 0), (0.1, 0.6), (0.1, 0.2), (-0.95, 0.2)])
_CROSS = np.array(
    [
        (-0.28, -0.9),
        (0.28, -0.9),
        (0.28, -0.28),
        (0.9, -0.28),
        (0.9, 0.28),
        (0.28, 0.28),
        (0.28, 0.9),
        (-0.28, 0.9),
        (-0.28, 0.28),
        (-0.9, 0.28),
        (-0.9, -0.28),
        (-0.28, -0.28),
    ]
)
_DIAMOND = np.array([(0, -1.0), (0.65, 0), (0, 1.0), (-0.65, 0)])
_STAR = regular(10) * np.array([(1.0,), (0.45,)] * 5)  # every other corner is near the middle

_OWN = partial(Canvas.figure, radius=(0.75, 0.95), turn=0.12, shift=0.05, warp=0.02)
_WILD = partial(Canvas.figure, radius=(0.4, 0.75), turn=0.45, shift=0.25, warp=0.05)


def _draw(
    shape: Shape, rng: np.random.Generator, size: int, *, make_canvas: MakeCanvas, clutter: float = 1.0
) -> Pixels:
    """Draw a filled or outlined figure in front of clouds.

    Args:
        clutter: Strength of the clouds. The probability of an outline is 0.4 times this value.
    """
    canvas = make_canvas(rng, size)
    inside = shape(canvas)
    background, color = contrasting_colors(rng)
    clouds = edge(fractal(rng, size, rng.uniform(1.5, 4.0)), 1.5)[:, :, None]
    back = background + 0.35 * clutter * clouds * (rng.uniform(0.0, 1.0, 3) - background)
    is_outlined = rng.random() < 0.4 * clutter
    ink = canvas.ink(0.09 - np.abs(inside)) if is_outlined else canvas.ink(inside)
    return light_and_quantize(rng, blend(back, color, ink))


SHAPES = RenderedSet(
    name="shapes",
    template="a photo of a {}.",
    counts={"train": 32, "val": 20, "test": 80},
    draw=partial(_draw, make_canvas=_OWN, clutter=0.2),
    families={
        "rounded": {
            "circle": _circle,
            "crescent": _crescent,
            "ellipse": _ellipse,
            "heart": _heart,
            "ring": _ring,
            "semicircle": _semicircle,
        },
        "angular": {
            "diamond": _polygon(_DIAMOND),
            "hexagon": _polygon(regular(6)),
            "octagon": _polygon(regular(8, np.pi / 8)),
            "pentagon": _polygon(regular(5)),
            "rectangle": _polygon(_box(0.95, 0.5)),
            "square": _polygon(_box(0.75, 0.75)),
            "triangle": _polygon(regular(3)),
        },
        "pointed": {
            "arrow": _polygon(_ARROW),
            "cross": _polygon(_CROSS),
            "star": _polygon(_STAR),
        },
    },
)
WILD = replace(SHAPES, draw=partial(_draw, make_canvas=_WILD))
"""The harder renderings that `mini` was pre-trained on."""
