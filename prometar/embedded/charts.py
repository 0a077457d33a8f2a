"""Dataset `charts`: 12 kinds of curves and charts on paper, with axes. Thin marks decide the class."""

from collections.abc import Callable

import numpy as np

from prometar.embedded.canvas import Canvas, Floats, edge, integer_offset, segment_distance
from prometar.embedded.paint import Pixels, blend, quantize, vary_color
from prometar.embedded.rendered import RenderedSet

Curve = Callable[[np.random.Generator, Floats], Floats]
"""Function of x in 0..1 that returns the height of a curve in 0..1."""

_STEPS = np.linspace(0.0, 1.0, 25)


def _graph(curve: Curve) -> Callable[[Canvas], Floats]:
    def depth(f: Canvas) -> Floats:
        height = np.clip(curve(f.rng, _STEPS), -0.1, 1.1)
        points = np.stack([_STEPS * 1.7 - 0.85, 0.8 - 1.6 * height], axis=1)
        return f.rng.uniform(0.04, 0.07) - segment_distance(f, points[:-1], points[1:])

    return depth


def _exponential(rng: np.random.Generator, t: Floats) -> Floats:
    rate = rng.uniform(3.0, 6.0)
    return np.expm1(rate * t) / np.expm1(rate)


def _gaussian(rng: np.random.Generator, t: Floats) -> Floats:
    return rng.uniform(0.7, 1.0) * np.exp(-(((t - rng.uniform(0.4, 0.6)) / rng.uniform(0.13, 0.22)) ** 2))


def _hyperbola(rng: np.random.Generator, t: Floats) -> Floats:
    bend = rng.uniform(0.04, 0.1)
    return bend / (t + bend)


def _line(rng: np.random.Generator, t: Floats) -> Floats:
    start, end = rng.uniform(0.0, 0.4), rng.uniform(0.5, 1.0)
    return (start + (end - start) * t) if rng.random() < 0.5 else (end + (start - end) * t)


def _logarithm(rng: np.random.Generator, t: Floats) -> Floats:
    rate = rng.uniform(15.0, 60.0)
    return np.log1p(rate * t) / np.log1p(rate)


def _sine(rng: np.random.Generator, t: Floats) -> Floats:
    return 0.5 + rng.uniform(0.25, 0.45) * np.sin(2 * np.pi * (t * rng.uniform(1.0, 2.5) + rng.random()))


def _staircase(rng: np.random.Generator, t: Floats) -> Floats:
    steps = rng.integers(3, 6)
    up = np.minimum(np.floor(t * steps) / (steps - 1), 1.0)
    return up if rng.random() < 0.5 else 1.0 - up


def _bars(f: Canvas) -> Floats:
    count = f.rng.integers(4, 8)
    heights = f.rng.uniform(0.3, 1.5, count)
    place_ = (f.x + 0.85) / 1.7 * count
    column = np.clip(np.floor(place_), 0, count - 1).astype(np.int64)
    inside = np.minimum(0.35 - np.abs(place_ - column - 0.5), 0.3)
    return np.minimum(inside * 1.7 / count, np.minimum(f.y - (0.8 - heights[column]), 0.8 - f.y))


def _pie(f: Canvas) -> Floats:
    cuts = np.sort(f.rng.uniform(-np.pi, np.pi, f.rng.integers(3, 6)))
    angle, radius = np.arctan2(f.y, f.x), np.hypot(f.x, f.y)
    slit = (
        np.min([np.abs(integer_offset((angle - cut) / (2 * np.pi))) for cut in cuts], axis=0)
        * 2
        * np.pi
        * radius
    )
    return np.minimum(0.75 - radius, slit - 0.035)


def _scatter(f: Canvas) -> Floats:
    count = f.rng.integers(12, 24)
    px = f.rng.uniform(-0.75, 0.75, count)
    py = -px * f.rng.uniform(-0.9, 0.9) + f.rng.normal(0.0, 0.25, count)
    near_ = np.sqrt(((f.x - px[:, None, None]) ** 2 + (f.y - py[:, None, None]) ** 2).min(0))
    return f.rng.uniform(0.05, 0.08) - near_


def _draw(depth: Callable[[Canvas], Floats], rng: np.random.Generator, size: int) -> Pixels:
    f = Canvas.figure(rng, size, radius=(0.75, 0.95), turn=0.06, shift=0.06, warp=0.01)
    paper = vary_color(rng, (0.95, 0.95, 0.93), 0.05)
    ink = rng.uniform(0.0, 0.75, 3)
    axes = np.maximum(0.03 - np.abs(f.x + 0.88), 0.03 - np.abs(f.y - 0.84))
    ruled = np.maximum(
        edge(0.05 - np.abs(integer_offset(f.x * 2.5)), 0.05),
        edge(0.05 - np.abs(integer_offset(f.y * 2.5)), 0.05),
    )
    image = blend(paper, vary_color(rng, (0.7, 0.75, 0.8), 0.1), ruled * rng.choice((0.0, 0.6)))
    image = blend(image, np.array((0.15, 0.15, 0.15)), f.ink(axes) * 0.9)
    image = blend(image, ink, f.ink(depth(f)))
    return quantize(image + 0.02 * rng.standard_normal((size, size, 1)))


CHARTS = RenderedSet(
    name="charts",
    template="a plot of a {}.",
    counts={"train": 32, "val": 40, "test": 200},
    draw=_draw,
    families={
        "curved": {
            "exponential": _graph(_exponential),
            "hyperbola": _graph(_hyperbola),
            "logarithm": _graph(_logarithm),
            "parabola": _graph(
                lambda rng, t: 0.05 + rng.uniform(3.0, 4.0) * (t - rng.uniform(0.45, 0.55)) ** 2
            ),
        },
        "wavy": {
            "gaussian": _graph(_gaussian),
            "sawtooth": _graph(
                lambda rng, t: 0.5 + 0.7 * integer_offset(t * rng.uniform(2.0, 4.0) + rng.random())
            ),
            "sine": _graph(_sine),
        },
        "chart": {
            "bars": _bars,
            "line": _graph(_line),
            "pie": _pie,
            "scatter": _scatter,
            "staircase": _graph(_staircase),
        },
    },
)
