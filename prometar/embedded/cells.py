"""Dataset `cells`: 10 kinds of cells and microbes.

The backbone `mini` was pretrained on images of the same kinds in other colors. A cell function is named like
its class, and returns depths in a cell.
"""

from collections.abc import Callable

import numpy as np

from prometar.embedded.canvas import Canvas, Floats, fractal, noise, segment_distance
from prometar.embedded.paint import Pixels, blend, quantize, vary_color
from prometar.embedded.rendered import RenderedSet

CellDepths = tuple[Floats, Floats]
"""Depths (H, W) in the body of a cell, and in its dark parts, such as the nucleus or walls (`Canvas.ink`)."""


def _random_points(canvas: Canvas, count: int, spread: float = 0.85) -> Floats:
    """Return random points (count, 2), at most one per square of a coarse grid.

    Args:
        spread: Maximum absolute coordinate of a square's edge.
    """
    side = int(np.ceil(np.sqrt(count)))
    columns, rows = np.meshgrid(np.arange(side), np.arange(side))
    corners = np.stack([columns, rows], axis=-1).reshape(-1, 2)
    points = (corners + 0.5 + canvas.rng.uniform(-0.3, 0.3, corners.shape)) / side * 2.0 - 1.0
    return spread * canvas.rng.permutation(points)[:count]


def _directions(angles: Floats) -> Floats:
    """Return unit vectors (N, 2) in the directions of `angles` (N,), in radians."""
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _discs(canvas: Canvas, points: Floats, radii: Floats) -> Floats:
    """Return the depth (H, W) in the union of discs around `points` (N, 2) with `radii` (N,)."""
    x = points[:, 0, None, None]
    y = points[:, 1, None, None]
    depths = radii[:, None, None] - np.hypot(canvas.x - x, canvas.y - y)
    return depths.max(0)


def _lumpy_disc(canvas: Canvas, radius: float, waves: int, amplitude: float) -> Floats:
    """Return the depth (H, W) in a disc whose radius varies along the edge, in about `waves` waves."""
    angle = np.arctan2(canvas.y, canvas.x)
    phase = canvas.rng.uniform(0, 2 * np.pi, 2)
    wave = np.sin(waves * angle + phase[0]) + 0.6 * np.sin((waves + 2) * angle + phase[1])
    return radius + amplitude * wave - np.hypot(canvas.x, canvas.y)


def _amoeba(canvas: Canvas) -> CellDepths:
    body = _lumpy_disc(canvas, 0.6, 3, 0.17)
    nucleus = canvas.rng.uniform(-0.25, 0.25, (1, 2))
    return body, _discs(canvas, nucleus, canvas.rng.uniform(0.15, 0.2, 1))


def _bacillus(canvas: Canvas) -> CellDepths:
    width = canvas.rng.uniform(0.07, 0.1)
    count = int(canvas.rng.integers(6, 13))
    points = _random_points(canvas, count)
    angle = canvas.rng.uniform(0, np.pi, count)
    half = 0.2 * _directions(angle)
    body = width - segment_distance(canvas, points - half, points + half)
    return body, body - 0.04


def _coccus(canvas: Canvas) -> CellDepths:
    count = int(canvas.rng.integers(8, 15))
    angle = np.cumsum(canvas.rng.normal(0, 0.5, count)) + canvas.rng.uniform(0, 6)
    chain = np.cumsum(_directions(angle) * 0.19, axis=0)
    centered_chain = chain - chain.mean(0)
    body = _discs(canvas, centered_chain, np.full(count, 0.11))
    return body, body - 0.05


def _diatom(canvas: Canvas) -> CellDepths:
    half_height = 0.32 * np.sqrt(np.clip(1.0 - (canvas.x / 0.95) ** 2, 0, 1))
    body = half_height - np.abs(canvas.y) - 0.01
    ribs = 0.1 * np.cos(canvas.x * canvas.rng.uniform(22, 32)) - 0.02
    spine = 0.03 - np.abs(canvas.y)
    wall = 0.05 - np.abs(body)
    dark = np.maximum(np.maximum(ribs, spine), wall)
    return body, np.minimum(body, dark)


def _erythrocyte(canvas: Canvas) -> CellDepths:
    points = _random_points(canvas, int(canvas.rng.integers(5, 9)), 0.9)
    body = _discs(canvas, points, canvas.rng.uniform(0.25, 0.3, len(points)))
    return body, 0.07 - np.abs(body - 0.06)


def _lymphocyte(canvas: Canvas) -> CellDepths:
    body = _lumpy_disc(canvas, 0.68, 2, 0.03)
    nucleus = _lumpy_disc(canvas, 0.54, 2, 0.03)
    return body, nucleus


def _neutrophil(canvas: Canvas) -> CellDepths:
    angle = canvas.rng.uniform(0, 2 * np.pi) + np.arange(4.0) * canvas.rng.uniform(1.0, 1.5)
    num_lobes = int(canvas.rng.integers(3, 5))
    lobes = 0.3 * _directions(angle)[:num_lobes]
    body = _lumpy_disc(canvas, 0.72, 2, 0.03)
    return body, _discs(canvas, lobes, canvas.rng.uniform(0.17, 0.23, num_lobes))


def _neuron(canvas: Canvas) -> CellDepths:
    count = int(canvas.rng.integers(5, 8))
    angle = np.arange(count) * 2 * np.pi / count + canvas.rng.uniform(-0.3, 0.3, count)
    # Each arm leads from the center to its middle, where it forks.
    center = np.zeros((count, 2))
    middle = 0.55 * _directions(angle)
    first_end = middle * 0.9 + 0.5 * _directions(angle - 0.5)
    second_end = middle * 0.9 + 0.5 * _directions(angle + 0.5)
    starts = np.concatenate([center, middle, middle])
    ends = np.concatenate([middle, first_end, second_end])
    arms = 0.05 - segment_distance(canvas, starts, ends)
    radius = np.hypot(canvas.x, canvas.y)
    return np.maximum(arms, 0.26 - radius), 0.13 - radius


def _spirillum(canvas: Canvas) -> CellDepths:
    frequency = canvas.rng.uniform(9, 13)
    amplitude = canvas.rng.uniform(0.09, 0.14)
    num_spirals = canvas.rng.integers(2, 4)
    shifts = (-0.55, 0.0, 0.55)
    body = np.full(canvas.x.shape, -1.0)
    for shift in shifts[:num_spirals]:
        wave = amplitude * np.sin(canvas.x * frequency + shift * 9)
        distance = np.abs(canvas.y - shift - wave) * 0.8
        ends = 0.75 - np.abs(canvas.x + shift * 0.3)
        body = np.maximum(body, np.minimum(0.055 - distance, ends))
    return body, body - 0.03


def _yeast(canvas: Canvas) -> CellDepths:
    points = _random_points(canvas, int(canvas.rng.integers(3, 6)), 0.8)
    radius = canvas.rng.uniform(0.2, 0.28, len(points))
    angle = canvas.rng.uniform(0, 2 * np.pi, len(points))
    buds = points + (radius + 0.07)[:, None] * _directions(angle)
    body = np.maximum(_discs(canvas, points, radius), _discs(canvas, buds, radius * 0.5))
    nuclei = _discs(canvas, points, radius * 0.35)
    walls = 0.025 - np.abs(body - 0.02)
    return body, np.maximum(nuclei, walls)


_STAINS = ((0.6, 0.25, 0.6), (0.75, 0.3, 0.45), (0.3, 0.3, 0.65), (0.3, 0.5, 0.5))
"""Colors of the stains in RGB, in 0..1."""


def _draw(cell: Callable[[Canvas], CellDepths], rng: np.random.Generator, size: int) -> Pixels:
    """Draw cells as an out-of-focus microscope shows them: stained, and darker towards the corners."""
    canvas = Canvas.figure(rng, size, radius=(0.6, 1.0), turn=np.pi, shift=0.2, warp=0.07)
    stain = vary_color(rng, _STAINS[rng.integers(len(_STAINS))], 0.1)
    background = vary_color(rng, (0.9, 0.87, 0.88), 0.06) + 0.04 * fractal(rng, size, 3.0)[:, :, None]
    body, dark = cell(canvas)
    blur = rng.uniform(2.0, 5.0)  # in pixels
    grains = 0.75 + 0.15 * noise(rng, size, 12)
    image = blend(background, 0.5 * stain + 0.45, canvas.ink(body, blur) * grains)
    image = blend(image, 0.8 * stain, canvas.ink(dark, blur) * 0.9)

    axis = np.linspace(-1, 1, size)
    from_center = np.hypot(axis[None, :], axis[:, None])
    light = 1.0 - 0.25 * rng.random() * from_center**2
    image = image * light[:, :, None]
    return quantize(image + 0.03 * rng.standard_normal((size, size, 1)))


CELLS = RenderedSet(
    name="cells",
    template="a microscope image of a {}.",
    counts={"train": 32, "val": 20, "test": 120},
    draw=_draw,
    families={  # grouped by appearance, so a neuron counts as a microbe
        "bacterial": {"bacillus": _bacillus, "coccus": _coccus, "spirillum": _spirillum},
        "blood": {"erythrocyte": _erythrocyte, "lymphocyte": _lymphocyte, "neutrophil": _neutrophil},
        "microbe": {"amoeba": _amoeba, "diatom": _diatom, "neuron": _neuron, "yeast": _yeast},
    },
)
