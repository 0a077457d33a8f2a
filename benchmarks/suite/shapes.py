"""`shapes`: 16 plane figures, filled or outlined, on a patterned background."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from prometar.embedded.canvas import Canvas, Floats, MakeCanvas, edge, fractal, segment_distance
from prometar.embedded.paint import Pixels, blend, contrasting_colors, light_and_quantize
from prometar.embedded.rendered import RenderedSet


def polygon(frame: Canvas, corners: Floats) -> Floats:
    """Return the distance (H, W) to the edge of the polygon of `corners` (N, 2), negative outside."""
    ends = np.roll(corners, -1, axis=0)
    rest = segment_distance(frame, corners, ends)
    ax, ay, bx, by = (part[:, None, None] for part in (*corners.T, *ends.T))
    flat = np.where(by == ay, 1e-12, by - ay)
    crossed = ((ay > frame.y) != (by > frame.y)) & (frame.x < ax + (bx - ax) * (frame.y - ay) / flat)
    return np.where(np.logical_xor.reduce(crossed, axis=0), rest, -rest)


def regular(corners: int, turn: float = 0.0) -> Floats:
    """Return the corners (N, 2) of a regular polygon of radius 1. The first is at the top."""
    angle = np.arange(corners) * 2.0 * np.pi / corners + turn - np.pi / 2.0
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _corners(points: Floats) -> Callable[[Canvas], Floats]:
    return lambda f: polygon(f, points)


def _box(wide: float, high: float) -> Floats:
    return np.array([(-wide, -high), (wide, -high), (wide, high), (-wide, high)])


def _ellipse(f: Canvas) -> Floats:
    flat = f.rng.uniform(0.45, 0.65)
    return (1.0 - np.hypot(f.x, f.y / flat)) * flat


def _crescent(f: Canvas) -> Floats:
    return np.minimum(0.95 - np.hypot(f.x, f.y), np.hypot(f.x - f.rng.uniform(0.35, 0.5), f.y) - 0.75)


def _heart(f: Canvas) -> Floats:
    x, y = np.abs(f.x), -f.y + 0.1
    lobe = 0.5 - np.hypot(x - 0.42, y - 0.35)
    tip = np.minimum(0.92 - (x + np.abs(y - 0.1)) * 0.95, 0.35 - y)
    return np.maximum(lobe, tip)


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
_STAR = regular(10) * np.array([(1.0,), (0.45,)] * 5)
_OWN = partial(Canvas.figure, radius=(0.75, 0.95), turn=0.12, shift=0.05, warp=0.02)
_WILD = partial(Canvas.figure, radius=(0.4, 0.75), turn=0.45, shift=0.25, warp=0.05)


def _draw(
    depth: Callable[[Canvas], Floats],
    rng: np.random.Generator,
    size: int,
    *,
    stance: MakeCanvas,
    clutter: float = 1.0,
) -> Pixels:
    frame = stance(rng, size)
    inside = depth(frame)
    background, color = contrasting_colors(rng)
    clouds = edge(fractal(rng, size, rng.uniform(1.5, 4.0)), 1.5)[:, :, None]
    back = background + 0.35 * clutter * clouds * (rng.uniform(0.0, 1.0, 3) - background)
    outline = rng.random() < 0.4 * clutter
    ink = frame.ink(0.09 - np.abs(inside)) if outline else frame.ink(inside)
    return light_and_quantize(rng, blend(back, color, ink))


SHAPES = RenderedSet(
    name="shapes",
    template="a photo of a {}.",
    counts={"train": 32, "val": 20, "test": 80},
    draw=partial(_draw, stance=_OWN, clutter=0.2),
    families={
        "rounded": {
            "circle": lambda f: 0.9 - np.hypot(f.x, f.y),
            "crescent": _crescent,
            "ellipse": _ellipse,
            "heart": _heart,
            "ring": lambda f: f.rng.uniform(0.15, 0.25) - np.abs(np.hypot(f.x, f.y) - 0.7),
            "semicircle": lambda f: np.minimum(0.95 - np.hypot(f.x, f.y - 0.4), 0.4 - f.y),
        },
        "angular": {
            "diamond": _corners(np.array([(0, -1.0), (0.65, 0), (0, 1.0), (-0.65, 0)])),
            "hexagon": _corners(regular(6)),
            "octagon": _corners(regular(8, np.pi / 8)),
            "pentagon": _corners(regular(5)),
            "rectangle": _corners(_box(0.95, 0.5)),
            "square": _corners(_box(0.75, 0.75)),
            "triangle": _corners(regular(3)),
        },
        "pointed": {
            "arrow": _corners(_ARROW),
            "cross": _corners(_CROSS),
            "star": _corners(_STAR),
        },
    },
)
WILD = replace(SHAPES, draw=partial(_draw, stance=_WILD))
"""The harder renderings that `mini` was pre-trained on."""
