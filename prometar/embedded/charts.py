"""Dataset `charts`: 12 kinds of curves and charts on paper, with axes. Thin marks decide the class.

A function is named like its class. It is a `Curve`, or the `Shape` of a chart's marks.
"""

from collections.abc import Callable

import numpy as np

from prometar.embedded.canvas import Canvas, Floats, Shape, edge, integer_offset, segment_distance
from prometar.embedded.paint import Pixels, blend, quantize, vary_color
from prometar.embedded.rendered import RenderedSet

Curve = Callable[[np.random.Generator, Floats], Floats]
"""Function (rng, t) that returns the heights of a curve, in 0..1, at the positions t in 0..1."""

_STEPS = np.linspace(0.0, 1.0, 25)  # positions t that line segments connect

# Plot area, in coordinates of the canvas (y downwards).
_LEFT = -0.85
_WIDTH = 1.7
_BOTTOM = 0.8
_HEIGHT = 1.6


def _graph(curve: Curve) -> Shape:
    """Return the shape of a curve that is drawn with a pen of random width."""

    def shape(canvas: Canvas) -> Floats:
        height = np.clip(curve(canvas.rng, _STEPS), -0.1, 1.1)
        x = _STEPS * _WIDTH + _LEFT
        y = _BOTTOM - _HEIGHT * height
        points = np.stack([x, y], axis=1)
        pen_radius = canvas.rng.uniform(0.04, 0.07)
        return pen_radius - segment_distance(canvas, points[:-1], points[1:])

    return shape


def _exponential(rng: np.random.Generator, t: Floats) -> Floats:
    rate = rng.uniform(3.0, 6.0)
    return np.expm1(rate * t) / np.expm1(rate)


def _gaussian(rng: np.random.Generator, t: Floats) -> Floats:
    height = rng.uniform(0.7, 1.0)
    center = rng.uniform(0.4, 0.6)
    width = rng.uniform(0.13, 0.22)
    return height * np.exp(-(((t - center) / width) ** 2))


def _hyperbola(rng: np.random.Generator, t: Floats) -> Floats:
    bend = rng.uniform(0.04, 0.1)
    return bend / (t + bend)


def _line(rng: np.random.Generator, t: Floats) -> Floats:
    low = rng.uniform(0.0, 0.4)
    high = rng.uniform(0.5, 1.0)
    rises = rng.random() < 0.5
    if rises:
        return low + (high - low) * t
    return high + (low - high) * t


def _logarithm(rng: np.random.Generator, t: Floats) -> Floats:
    rate = rng.uniform(15.0, 60.0)
    return np.log1p(rate * t) / np.log1p(rate)


def _parabola(rng: np.random.Generator, t: Floats) -> Floats:
    curvature = rng.uniform(3.0, 4.0)
    vertex = rng.uniform(0.45, 0.55)
    return 0.05 + curvature * (t - vertex) ** 2


def _sawtooth(rng: np.random.Generator, t: Floats) -> Floats:
    teeth = rng.uniform(2.0, 4.0)
    phase = rng.random()
    return 0.5 + 0.7 * integer_offset(t * teeth + phase)


def _sine(rng: np.random.Generator, t: Floats) -> Floats:
    amplitude = rng.uniform(0.25, 0.45)
    waves = rng.uniform(1.0, 2.5)
    phase = rng.random()
    return 0.5 + amplitude * np.sin(2 * np.pi * (t * waves + phase))


def _staircase(rng: np.random.Generator, t: Floats) -> Floats:
    steps = rng.integers(3, 6)
    up = np.minimum(np.floor(t * steps) / (steps - 1), 1.0)
    rises = rng.random() < 0.5
    return up if rises else 1.0 - up


def _bars(canvas: Canvas) -> Floats:
    count = canvas.rng.integers(4, 8)
    heights = canvas.rng.uniform(0.3, 1.5, count)
    position = (canvas.x - _LEFT) / _WIDTH * count  # measured in columns, from the left
    column = np.clip(np.floor(position), 0, count - 1).astype(np.int64)
    inside = np.minimum(0.35 - np.abs(position - column - 0.5), 0.3)  # a bar fills 0.7 of its column
    horizontal_depth = inside * _WIDTH / count
    top = _BOTTOM - heights[column]
    vertical_depth = np.minimum(canvas.y - top, _BOTTOM - canvas.y)
    return np.minimum(horizontal_depth, vertical_depth)


def _pie(canvas: Canvas) -> Floats:
    num_cuts = canvas.rng.integers(3, 6)
    cuts = np.sort(canvas.rng.uniform(-np.pi, np.pi, num_cuts))  # angles in radians
    angle = np.arctan2(canvas.y, canvas.x)
    radius = np.hypot(canvas.x, canvas.y)
    turns = (angle - cuts[:, None, None]) / (2 * np.pi)
    turns_to_cut = np.abs(integer_offset(turns)).min(0)
    distance_to_cut = turns_to_cut * 2 * np.pi * radius
    return np.minimum(0.75 - radius, distance_to_cut - 0.035)


def _scatter(canvas: Canvas) -> Floats:
    count = canvas.rng.integers(12, 24)
    x = canvas.rng.uniform(-0.75, 0.75, count)
    slope = canvas.rng.uniform(-0.9, 0.9)
    y = -x * slope + canvas.rng.normal(0.0, 0.25, count)
    squared = (canvas.x - x[:, None, None]) ** 2 + (canvas.y - y[:, None, None]) ** 2
    distance = np.sqrt(squared.min(0))
    point_radius = canvas.rng.uniform(0.05, 0.08)
    return point_radius - distance


def _draw(shape: Shape, rng: np.random.Generator, size: int) -> Pixels:
    """Draw the marks of a chart in a random color on paper with axes. Half of the images have ruled paper."""
    canvas = Canvas.figure(rng, size, radius=(0.75, 0.95), turn=0.06, shift=0.06, warp=0.01)
    paper = vary_color(rng, (0.95, 0.95, 0.93), 0.05)
    color = rng.uniform(0.0, 0.75, 3)

    # The axes lie just outside the plot area.
    vertical_axis = 0.03 - np.abs(canvas.x + 0.88)
    horizontal_axis = 0.03 - np.abs(canvas.y - 0.84)
    axes = np.maximum(vertical_axis, horizontal_axis)

    vertical_rules = edge(0.05 - np.abs(integer_offset(canvas.x * 2.5)), 0.05)
    horizontal_rules = edge(0.05 - np.abs(integer_offset(canvas.y * 2.5)), 0.05)
    rules = np.maximum(vertical_rules, horizontal_rules)
    rule_color = vary_color(rng, (0.7, 0.75, 0.8), 0.1)
    rule_strength = rng.choice((0.0, 0.6))

    image = blend(paper, rule_color, rules * rule_strength)
    image = blend(image, np.array((0.15, 0.15, 0.15)), canvas.ink(axes) * 0.9)
    image = blend(image, color, canvas.ink(shape(canvas)))
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
            "parabola": _graph(_parabola),
        },
        "wavy": {
            "gaussian": _graph(_gaussian),
            "sawtooth": _graph(_sawtooth),
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
