"""Drawing primitives of rendered images: canvases, noise, cells and strokes (numpy, Pillow).

Everything is float64 with soft edges: a last-digit difference of a machine's sine does not flip a pixel.
Shape legend: H, W = image side in pixels; N = points or segments.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Canvas:
    """Coordinates of an image, from `pattern_canvas` or `figure_canvas`.

    Attributes:
        rng: The image's own generator.
        x, y: (H, W) coordinates, y downwards, in pattern cells or about -1..1 across a figure.
        pixel: Width of one pixel in them.
        cells: Pattern cells across the image; 0 for a figure.
    """

    rng: np.random.Generator
    x: Floats
    y: Floats
    pixel: float
    cells: float = 0.0

    @property
    def size(self) -> int:
        """Side of the image in pixels."""
        return self.x.shape[0]

    def ink(self, depth: Floats, softness: float = 1.5) -> Floats:
        """1 where `depth` is above 0, with an edge of `softness` pixels."""
        return edge(depth, softness * self.pixel)


def pattern_canvas(rng: np.random.Generator, size: int, cells: float, *, turn: float, warp: float) -> Canvas:
    """A canvas of `cells` cells across, turned by up to `turn` radians and warped by `warp` cells."""
    angle = rng.uniform(-turn, turn)
    stretch = np.exp(rng.uniform(-0.12, 0.12))
    axis = (np.arange(size) + 0.5) / size - 0.5
    u, v = axis[None, :] * cells, axis[:, None] * cells
    x = (u * np.cos(angle) - v * np.sin(angle)) * stretch + rng.uniform(0.0, 8.0)
    y = (u * np.sin(angle) + v * np.cos(angle)) / stretch + rng.uniform(0.0, 8.0)
    if warp > 0.0:
        x = x + warp * noise(rng, size, 2.5)
        y = y + warp * noise(rng, size, 2.5)
    return Canvas(rng, x, y, cells / size, cells)


def noise(rng: np.random.Generator, size: int, waves: float, stretch: float = 1.0) -> Floats:
    """(H, W) smooth noise, deviation about 1, `waves` bumps across (`waves / stretch` downwards)."""
    shape = (max(2, round(waves * 2 / stretch)) + 2, max(2, round(waves * 2)) + 2)
    grid = Image.fromarray(rng.standard_normal(shape).astype(np.float32))
    grown = np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)
    return grown * 1.25


def fractal(rng: np.random.Generator, size: int, waves: float, octaves: int = 3) -> Floats:
    """(H, W) sum of noises, each twice as fine and half as strong as the last; deviation about 1."""
    total = np.zeros((size, size))
    for octave in range(octaves):
        total += noise(rng, size, waves * 2**octave) * 0.5**octave
    return total * 0.9


def edge(distance: Floats, width: float) -> Floats:
    """0 below, 1 above distance 0, with a smooth edge `width` wide."""
    t = np.clip(distance / width + 0.5, 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def centered(value: Floats) -> Floats:
    """Distance to the nearest whole number, signed: -0.5 .. 0.5."""
    return value - np.floor(value + 0.5)


def scatter(canvas: Canvas, spacing: float, jitter: float) -> tuple[Floats, Floats]:
    """(N,), (N,): points of a jittered grid of `spacing` cells that covers the canvas."""
    left, top = canvas.x.min() - spacing, canvas.y.min() - spacing
    columns = np.arange(left, canvas.x.max() + spacing, spacing)
    rows = np.arange(top, canvas.y.max() + spacing, spacing)
    px, py = (axis.ravel() for axis in np.meshgrid(columns, rows))
    px = px + canvas.rng.uniform(-jitter, jitter, px.shape) * spacing
    py = py + canvas.rng.uniform(-jitter, jitter, py.shape) * spacing
    margin = 0.75 * spacing  # turned canvases have empty corners: drop the points that no pixel is near
    corner_x, corner_y = canvas.x[::7, ::7].ravel(), canvas.y[::7, ::7].ravel()
    squared = ((corner_x[:, None] - px) ** 2 + (corner_y[:, None] - py) ** 2).min(0)
    near = squared < (margin + 7 * canvas.pixel) ** 2
    return px[near], py[near]


def voronoi(
    canvas: Canvas, spacing: float = 1.0, jitter: float = 0.4
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Voronoi cells: (H, W) distance to the nearest and second nearest point, index of the nearest."""
    px, py = scatter(canvas, spacing, jitter)
    first = np.full(canvas.x.shape, 1e9)
    second = first.copy()
    owner = np.zeros(canvas.x.shape, dtype=np.int64)
    for index in range(len(px)):
        squared = (canvas.x - px[index]) ** 2 + (canvas.y - py[index]) ** 2
        nearer = squared < first
        second = np.minimum(second, np.maximum(first, squared))
        first = np.where(nearer, squared, first)
        owner[nearer] = index
    return np.sqrt(first), np.sqrt(second), owner


MakeCanvas = Callable[[np.random.Generator, int], Canvas]
"""`figure_canvas` with all but its first two arguments."""


def figure_canvas(
    rng: np.random.Generator, size: int, *, reach: tuple[float, float], turn: float, shift: float, warp: float
) -> Canvas:
    """A canvas for one figure.

    Args:
        reach: Its unit, as a share of half the image (low, high).
        turn, shift: It is turned by up to `turn` radians and moved by up to `shift` of half the image.
        warp: Bending, in its units.
    """
    unit, angle = rng.uniform(*reach), rng.uniform(-turn, turn)
    stretch = np.exp(rng.uniform(-0.1, 0.1))
    left, top = rng.uniform(-shift, shift, 2)
    axis = ((np.arange(size) + 0.5) / size - 0.5) * 2.0
    u, v = (axis[None, :] - left) / unit, (axis[:, None] - top) / unit
    x = (u * np.cos(angle) + v * np.sin(angle)) * stretch
    y = (v * np.cos(angle) - u * np.sin(angle)) / stretch
    if warp > 0.0:
        x = x + warp * noise(rng, size, 2.0)
        y = y + warp * noise(rng, size, 2.0)
    return Canvas(rng, x, y, 2.0 / size / unit)


def distance(canvas: Canvas, starts: Floats, ends: Floats) -> Floats:
    """(H, W) distance to the nearest of the segments `starts` (N, 2) to `ends` (N, 2)."""
    along = ends - starts
    ax, ay, bx, by = (part[:, None, None] for part in (*starts.T, *along.T))
    dx, dy = canvas.x - ax, canvas.y - ay
    t = np.clip((dx * bx + dy * by) / (bx * bx + by * by + 1e-12), 0.0, 1.0)
    return np.sqrt(((dx - t * bx) ** 2 + (dy - t * by) ** 2).min(0))
