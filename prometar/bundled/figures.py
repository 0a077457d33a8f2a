"""One figure in the middle of an image: its coordinates, strokes and polygons (numpy).

Shape legend: H, W = image side in pixels; N = segments or corners.
"""

from dataclasses import dataclass

import numpy as np

from prometar.bundled.canvas import Field, Frame, noise


@dataclass(frozen=True)
class Stance:
    """Pose of a figure in an image.

    Attributes:
        reach: Its unit, as a share of half the image (low, high).
        turn, shift: It is turned by up to `turn` radians and moved by up to `shift` of half the image.
        warp: Bending, in its units.
        clutter: How much of what disturbs (clouds, rough ground, weak strokes) there is; 1 is all.
    """

    reach: tuple[float, float]
    turn: float
    shift: float
    warp: float
    clutter: float = 1.0


def place(rng: np.random.Generator, size: int, stance: Stance) -> Frame:
    """A frame for one figure."""
    turn, shift, warp = stance.turn, stance.shift, stance.warp
    unit, angle = rng.uniform(*stance.reach), rng.uniform(-turn, turn)
    stretch = np.exp(rng.uniform(-0.1, 0.1))
    left, top = rng.uniform(-shift, shift, 2)
    axis = ((np.arange(size) + 0.5) / size - 0.5) * 2.0
    u, v = (axis[None, :] - left) / unit, (axis[:, None] - top) / unit
    x = (u * np.cos(angle) + v * np.sin(angle)) * stretch
    y = (v * np.cos(angle) - u * np.sin(angle)) / stretch
    if warp > 0.0:
        x = x + warp * noise(rng, size, 2.0)
        y = y + warp * noise(rng, size, 2.0)
    return Frame(rng, x, y, 2.0 / size / unit)


def distance(frame: Frame, starts: Field, ends: Field) -> Field:
    """(H, W) distance to the nearest of the segments `starts` (N, 2) to `ends` (N, 2)."""
    along = ends - starts
    ax, ay, bx, by = (part[:, None, None] for part in (*starts.T, *along.T))
    dx, dy = frame.x - ax, frame.y - ay
    t = np.clip((dx * bx + dy * by) / (bx * bx + by * by + 1e-12), 0.0, 1.0)
    return np.sqrt(((dx - t * bx) ** 2 + (dy - t * by) ** 2).min(0))
