"""`leaves`: leaves of 12 plants, from green to autumn red, on earth. Fine-grained classes."""

from dataclasses import replace
from functools import partial

import numpy as np

from prometar.embedded.canvas import Canvas, Floats, MakeCanvas, Shape, fractal, noise, segment_distance
from prometar.embedded.paint import Pixels, blend, light_and_quantize, vary_color
from prometar.embedded.rendered import RenderedSet


def _polar(canvas: Canvas, y: float = 0.0) -> tuple[Floats, Floats]:
    """Return the radius around (0, y), and the angle from the tip (0, upwards) to the stem (+-pi)."""
    return np.hypot(canvas.x, canvas.y - y), np.arctan2(canvas.x, y - canvas.y)


def _blade(canvas: Canvas, half_width: float, belly: float = 0.0) -> Floats:
    """Return the depth (H, W) in a simple leaf along y.

    Args:
        half_width: Half the maximum width.
        belly: If positive, the leaf is widest near the stem. If negative, it is widest near the tip.
    """
    t = np.clip((canvas.y + 0.95) / 1.7, 0.0, 1.0)  # from 0 at the tip to 1 at the stem
    return half_width * np.sin(np.pi * t ** (1.0 + belly)) - np.abs(canvas.x)


def _birch(canvas: Canvas) -> Floats:
    return _blade(canvas, 0.62, 0.4) + 0.05 * np.sin(canvas.y * 28.0)


def _clover(canvas: Canvas) -> Floats:
    lobes = [
        0.42 - np.hypot(canvas.x - 0.45 * np.sin(angle), canvas.y + 0.45 * np.cos(angle))
        for angle in (-2.0, 0.0, 2.0)
    ]
    return np.max(lobes, axis=0)


def _fern(canvas: Canvas) -> Floats:
    t = np.clip((canvas.y + 0.95) / 1.8, 0.0, 1.0)
    teeth = np.sin((canvas.y + 0.5 * np.abs(canvas.x)) * 24.0) * 0.12
    return np.maximum(np.minimum(0.75 * t**0.8 - np.abs(canvas.x), teeth), 0.035 - np.abs(canvas.x))


def _ginkgo(canvas: Canvas) -> Floats:
    radius, angle = _polar(canvas, 0.6)
    fan = np.minimum(1.3 + 0.04 * np.cos(angle * 22.0) - radius, (1.0 - np.abs(angle)) * radius)
    return np.minimum(fan, np.hypot(canvas.x * 2.2, canvas.y + 0.75) - 0.3)


def _holly(canvas: Canvas) -> Floats:
    return _blade(canvas, 0.42) + 0.16 * np.abs(np.sin(canvas.y * 6.5)) - 0.06


def _ivy(canvas: Canvas) -> Floats:
    radius, angle = _polar(canvas, 0.1)
    return 0.62 + 0.16 * np.cos(angle * 5.0) + 0.1 * np.cos(angle) - radius


def _lotus(canvas: Canvas) -> Floats:
    radius, angle = _polar(canvas)
    disc = 0.85 + 0.02 * np.cos(angle * 9.0) - radius
    beside_slit = (np.pi - np.abs(angle) - 0.22) * radius
    return np.minimum(disc, beside_slit)


def _maple(canvas: Canvas) -> Floats:
    radius, angle = _polar(canvas, 0.15)
    spread = np.clip(angle / 0.85, -3.0, 3.0)
    lobe = 1.0 - 2.0 * np.abs(spread - np.floor(spread + 0.5))
    lobes = 0.55 * np.clip(lobe, 0, 1) ** 1.2 * np.cos(angle * 0.42)
    teeth = 0.04 * np.cos(angle * 30)
    return 0.4 + lobes + teeth - radius


def _oak(canvas: Canvas) -> Floats:
    lobes = 0.13 * np.cos((canvas.y + 0.1 * np.sign(canvas.x)) * 11.0)
    return _blade(canvas, 0.5, -0.2) + lobes


def _palm(canvas: Canvas) -> Floats:
    radius, angle = _polar(canvas, 0.5)
    blades = np.cos(angle * 13.0) * 0.14 * np.minimum(radius, 1.0)
    return np.minimum(np.minimum(1.25 - radius, (1.9 - np.abs(angle)) * radius), blades)


def _pine(canvas: Canvas) -> Floats:
    num_needles = 14
    angle = canvas.rng.uniform(-1.1, 1.1, num_needles)
    roots = np.stack([np.zeros(num_needles), np.linspace(0.9, -0.3, num_needles)], axis=1)
    length = canvas.rng.uniform(0.7, 1.1, num_needles)[:, None]
    tips = roots + length * np.stack([np.sin(angle), -np.cos(angle)], axis=1)
    return 0.035 - segment_distance(canvas, roots, tips)


def _willow(canvas: Canvas) -> Floats:
    return _blade(canvas, 0.2, 0.1) + 0.01 * np.sin(canvas.y * 40.0)


# RGB, from spring to autumn, and evergreen.
_SEASONS = ((0.2, 0.5, 0.15), (0.35, 0.6, 0.2), (0.75, 0.6, 0.15), (0.7, 0.3, 0.12), (0.15, 0.35, 0.2))
_OWN = partial(Canvas.figure, radius=(0.8, 0.95), turn=0.25, shift=0.06, warp=0.03)
_WILD = partial(Canvas.figure, radius=(0.55, 0.85), turn=1.2, shift=0.2, warp=0.1)


def _draw(
    shape: Shape, rng: np.random.Generator, size: int, *, make_canvas: MakeCanvas, clutter: float = 1.0
) -> Pixels:
    """Draw a leaf with stem, rib and shadow on earth. `clutter`: strength of the earth's structure."""
    canvas = make_canvas(rng, size)
    earth = vary_color(rng, (0.4, 0.33, 0.25), 0.15)
    earth = earth + 0.12 * clutter * fractal(rng, size, 5.0)[:, :, None]
    leaf = vary_color(rng, _SEASONS[rng.integers(5)], 0.1)
    leaf = leaf * (1.0 + 0.12 * noise(rng, size, 3)[:, :, None])
    inside = shape(canvas)
    stem = np.minimum(0.035 - np.abs(canvas.x), np.minimum(1.15 - canvas.y, canvas.y - 0.3))
    image = blend(earth, earth * 0.6, canvas.ink(inside + 0.08, 5.0) * 0.6)  # shadow of the leaf
    image = blend(image, leaf, canvas.ink(np.maximum(inside, stem), 2.0))
    rib = np.minimum(0.03 - np.abs(canvas.x), inside)
    image = blend(image, np.clip(leaf * 1.3, 0, 1), canvas.ink(rib) * 0.7)
    return light_and_quantize(rng, image)


LEAVES = RenderedSet(
    name="leaves",
    template="a photo of a {} leaf.",
    counts={"train": 32, "val": 20, "test": 100},
    draw=partial(_draw, make_canvas=_OWN, clutter=0.3),
    families={
        "lobed": {"holly": _holly, "ivy": _ivy, "maple": _maple, "oak": _oak},
        "narrow": {"fern": _fern, "palm": _palm, "pine": _pine, "willow": _willow},
        "broad": {"birch": _birch, "clover": _clover, "ginkgo": _ginkgo, "lotus": _lotus},
    },
)
WILD = replace(LEAVES, draw=partial(_draw, make_canvas=_WILD))
"""The harder renderings that `mini` was pre-trained on."""
