"""Painting of rendered images: random colors, blending by a mask, uneven light, and conversion to uint8."""

import numpy as np
from numpy.typing import NDArray

from prometar.embedded.canvas import Floats, fractal

Pixels = NDArray[np.uint8]
"""Image (H, W, 3) in RGB."""


def contrasting_colors(rng: np.random.Generator) -> Floats:
    """Return two colors (2, 3) in 0..1 whose mean brightness differs by more than 0.35."""
    while True:
        pair = rng.uniform(0.05, 0.95, (2, 3))
        if abs(float(pair[0].mean() - pair[1].mean())) > 0.35:
            return pair


def quantize(image: Floats) -> Pixels:
    """Convert colors (H, W, 3) in 0..1 to uint8."""
    return np.clip(np.rint(image * 255.0), 0, 255).astype(np.uint8)


def blend(background: Floats, color: Floats, ink: Floats) -> Floats:
    """Return an image (H, W, 3) that blends a background and a color.

    Args:
        background: Color (3,) or image (H, W, 3) where the ink is 0.
        color: Color (3,) or image (H, W, 3) where the ink is 1.
        ink: Mask (H, W). Values outside 0..1 are clipped.
    """
    return background + np.clip(ink, 0.0, 1.0)[:, :, None] * (color - background)


def light_and_quantize(rng: np.random.Generator, image: Floats) -> Pixels:
    """Apply uneven light and grain to a square image (H, H, 3), and convert it to uint8."""
    size = image.shape[0]
    axis = np.linspace(-1.0, 1.0, size)
    tilt_x, tilt_y = rng.uniform(-0.2, 0.2, 2)
    light = rng.uniform(0.8, 1.1) + tilt_x * axis[None, :] + tilt_y * axis[:, None]
    light = light + 0.05 * fractal(rng, size, 3.0, 2)
    grain = rng.uniform(0.01, 0.05) * rng.standard_normal((size, size, 1))
    return quantize(image * light[:, :, None] + grain)


def vary_color(rng: np.random.Generator, color: tuple[float, float, float], spread: float = 0.08) -> Floats:
    """Return a random color (3,). Each channel differs from `color` by at most `spread`."""
    return np.clip(np.array(color) + rng.uniform(-spread, spread, 3), 0.0, 1.0)
