"""Drawing primitives of rendered images: canvases, noise, Voronoi cells and line segments.

Values are float64 and edges are soft, so that rounding differences between machines do not change pixels.
Shapes: H = W is the image side in pixels, N is the number of points or segments.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float64]
Rng = np.random.Generator

_SAMPLE_STEP = 7  # pixels between the pixels that `scatter` tests


@dataclass(frozen=True)
class Canvas:
    """Coordinates of an image's pixels, for a motif that repeats in tiles (`pattern`) or a single `figure`.

    Attributes:
        rng: Random generator of the image.
        x, y: (H, W) coordinates, y downwards, measured in tiles of a pattern or in radii of a figure.
        pixel: Width of one pixel in the same unit.
        tiles: Number of a pattern's tiles across the image, or 0 for a figure.
    """

    rng: Rng
    x: Floats
    y: Floats
    pixel: float
    tiles: float = 0.0

    @classmethod
    def pattern(cls, rng: Rng, size: int, tiles: float, *, turn: float, warp: float) -> Self:
        """Return a canvas for a pattern.

        Args:
            size: Side of the image in pixels.
            tiles: Number of tiles across the image.
            turn: Maximum angle in radians by which the pattern is turned.
            warp: Typical displacement by the warp, in tiles.
        """
        angle = rng.uniform(-turn, turn)
        stretch = np.exp(rng.uniform(-0.12, 0.12))
        axis = (np.arange(size) + 0.5) / size - 0.5
        u = axis[None, :] * tiles
        v = axis[:, None] * tiles
        x = (u * np.cos(angle) - v * np.sin(angle)) * stretch + rng.uniform(0.0, 8.0)
        y = (u * np.sin(angle) + v * np.cos(angle)) / stretch + rng.uniform(0.0, 8.0)
        x = x + warp * noise(rng, size, 2.5)
        y = y + warp * noise(rng, size, 2.5)
        return cls(rng, x, y, tiles / size, tiles)

    @classmethod
    def figure(
        cls, rng: Rng, size: int, *, radius: tuple[float, float], turn: float, shift: float, warp: float
    ) -> Self:
        """Return a canvas for one figure.

        Args:
            size: Side of the image in pixels.
            radius: Range (low, high) of the figure's radius as a fraction of half the image side.
            turn: Maximum angle in radians by which the figure is turned.
            shift: Maximum shift of the figure as a fraction of half the image side.
            warp: Typical displacement by the warp, in radii of the figure.
        """
        unit = rng.uniform(*radius)
        angle = rng.uniform(-turn, turn)
        stretch = np.exp(rng.uniform(-0.1, 0.1))
        center_x, center_y = rng.uniform(-shift, shift, 2)
        axis = ((np.arange(size) + 0.5) / size - 0.5) * 2.0
        u = (axis[None, :] - center_x) / unit
        v = (axis[:, None] - center_y) / unit
        x = (u * np.cos(angle) + v * np.sin(angle)) * stretch
        y = (v * np.cos(angle) - u * np.sin(angle)) / stretch
        x = x + warp * noise(rng, size, 2.0)
        y = y + warp * noise(rng, size, 2.0)
        return cls(rng, x, y, 2.0 / size / unit)

    @property
    def size(self) -> int:
        """Side of the image in pixels."""
        return self.x.shape[0]

    def ink(self, depth: Floats, softness: float = 1.5) -> Floats:
        """Return a mask (H, W): 1 inside a shape, 0 outside, with a soft edge.

        Args:
            depth: (H, W) distance to the edge of the shape, positive inside and negative outside.
            softness: Width of the edge in pixels.
        """
        return edge(depth, softness * self.pixel)


MakeCanvas = Callable[[Rng, int], Canvas]
"""Function (rng, size) that returns a canvas, such as a partial of `Canvas.figure`."""

Shape = Callable[[Canvas], Floats]
"""Function of a canvas that returns the depth (H, W) of its pixels in a shape (see `Canvas.ink`)."""


def noise(rng: Rng, size: int, waves: float, stretch: float = 1.0) -> Floats:
    """Return smooth noise (H, W) with a standard deviation of about 1.

    Args:
        size: Side of the image in pixels.
        waves: Number of bumps per row. A column has `waves / stretch` bumps.
    """
    num_rows = max(2, round(waves * 2 / stretch)) + 2
    num_columns = max(2, round(waves * 2)) + 2
    values = rng.standard_normal((num_rows, num_columns)).astype(np.float32)
    smooth = Image.fromarray(values).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(smooth, dtype=np.float64) * 1.25  # because interpolation reduces the deviation


def fractal(rng: Rng, size: int, waves: float, octaves: int = 3) -> Floats:
    """Return fractal noise (H, W) with a standard deviation of about 1.

    The result is a sum of octaves. Each octave is noise that is twice as fine and half as strong as the
    octave before it.

    Args:
        size: Side of the image in pixels.
        waves: Number of bumps per row in the first octave.
        octaves: Number of octaves. Default: 3.
    """
    total = np.zeros((size, size))
    for octave in range(octaves):
        total += noise(rng, size, waves * 2**octave) * 0.5**octave
    return total * 0.9  # because the sum has a larger deviation than its first octave


def edge(distance: Floats, width: float) -> Floats:
    """Return 0 for negative and 1 for positive distances, with a smooth transition of width `width`."""
    t = np.clip(distance / width + 0.5, 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def integer_offset(value: Floats) -> Floats:
    """Return the signed distance to the nearest integer, from -0.5 to 0.5."""
    return value - np.floor(value + 0.5)


def scatter(canvas: Canvas, spacing: float, jitter: float) -> tuple[Floats, Floats]:
    """Return x and y (N,) of a grid's points, each shifted at random by up to `jitter * spacing`."""
    columns = np.arange(canvas.x.min() - spacing, canvas.x.max() + spacing, spacing)
    rows = np.arange(canvas.y.min() - spacing, canvas.y.max() + spacing, spacing)
    grid_x, grid_y = np.meshgrid(columns, rows)
    x = grid_x.ravel() + canvas.rng.uniform(-jitter, jitter, grid_x.size) * spacing
    y = grid_y.ravel() + canvas.rng.uniform(-jitter, jitter, grid_y.size) * spacing

    # Drop points outside the image. To save time, only a sample of the pixels is tested, with some slack.
    sample_x = canvas.x[::_SAMPLE_STEP, ::_SAMPLE_STEP].ravel()
    sample_y = canvas.y[::_SAMPLE_STEP, ::_SAMPLE_STEP].ravel()
    squared_distances = (sample_x[:, None] - x) ** 2 + (sample_y[:, None] - y) ** 2
    margin = 0.75 * spacing
    slack = _SAMPLE_STEP * canvas.pixel
    near = squared_distances.min(0) < (margin + slack) ** 2
    return x[near], y[near]


def voronoi(
    canvas: Canvas, spacing: float = 1.0, jitter: float = 0.4
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Return distances (H, W) to the two nearest points of `scatter`, and the index of the nearest point."""
    point_x, point_y = scatter(canvas, spacing, jitter)
    # Squared distances to the nearest and second nearest point so far.
    first = np.full(canvas.x.shape, 1e9)
    second = first.copy()
    owner = np.zeros(canvas.x.shape, dtype=np.int64)
    for index in range(len(point_x)):
        squared = (canvas.x - point_x[index]) ** 2 + (canvas.y - point_y[index]) ** 2
        nearer = squared < first
        second = np.minimum(second, np.maximum(first, squared))
        first = np.where(nearer, squared, first)
        owner[nearer] = index
    return np.sqrt(first), np.sqrt(second), owner


def segment_distance(canvas: Canvas, starts: Floats, ends: Floats) -> Floats:
    """Return the distance (H, W) to the nearest of the segments from `starts` (N, 2) to `ends` (N, 2)."""
    along = ends - starts
    along_x = along[:, 0, None, None]
    along_y = along[:, 1, None, None]
    dx = canvas.x - starts[:, 0, None, None]
    dy = canvas.y - starts[:, 1, None, None]
    squared_length = along_x * along_x + along_y * along_y + 1e-12  # never 0
    # Place of a segment's nearest point: 0 at the start of the segment, 1 at its end.
    t = np.clip((dx * along_x + dy * along_y) / squared_length, 0.0, 1.0)
    squared_distances = (dx - t * along_x) ** 2 + (dy - t * along_y) ** 2
    return np.sqrt(squared_distances.min(0))
