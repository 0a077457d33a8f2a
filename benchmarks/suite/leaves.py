"""`leaves`: leaves of 12 plants, from green to autumn red, on earth. Fine-grained classes."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from prometar.embedded.canvas import Canvas, Floats, MakeCanvas, fractal, noise, segment_distance
from prometar.embedded.paint import Pixels, blend, light_and_quantize, vary_color
from prometar.embedded.rendered import RenderedSet


def _polar(f: Canvas, y: float = 0.0) -> tuple[Floats, Floats]:
    """Return the radius around (0, y) and the angle from the tip (0, up) to the stem (+-pi), both (H, W)."""
    return np.hypot(f.x, f.y - y), np.arctan2(f.x, y - f.y)


def _blade(f: Canvas, wide: float, belly: float = 0.0) -> Floats:
    """Return a leaf along y with maximum width `wide`. If belly > 0, it is widest near the stem."""
    t = np.clip((f.y + 0.95) / 1.7, 0.0, 1.0)
    return wide * np.sin(np.pi * t ** (1.0 + belly)) - np.abs(f.x)


def _clover(f: Canvas) -> Floats:
    lobes = [0.42 - np.hypot(f.x - 0.45 * np.sin(a), f.y + 0.45 * np.cos(a)) for a in (-2.0, 0.0, 2.0)]
    return np.max(lobes, axis=0)


def _fern(f: Canvas) -> Floats:
    t = np.clip((f.y + 0.95) / 1.8, 0.0, 1.0)
    teeth = np.sin((f.y + 0.5 * np.abs(f.x)) * 24.0) * 0.12
    return np.maximum(np.minimum(0.75 * t**0.8 - np.abs(f.x), teeth), 0.035 - np.abs(f.x))


def _ginkgo(f: Canvas) -> Floats:
    radius, angle = _polar(f, 0.6)
    fan = np.minimum(1.3 + 0.04 * np.cos(angle * 22.0) - radius, (1.0 - np.abs(angle)) * radius)
    return np.minimum(fan, np.hypot(f.x * 2.2, f.y + 0.75) - 0.3)


def _ivy(f: Canvas) -> Floats:
    radius, angle = _polar(f, 0.1)
    return 0.62 + 0.16 * np.cos(angle * 5.0) + 0.1 * np.cos(angle) - radius


def _lotus(f: Canvas) -> Floats:
    radius, angle = _polar(f)
    return np.minimum(0.85 + 0.02 * np.cos(angle * 9.0) - radius, (np.pi - np.abs(angle) - 0.22) * radius)


def _maple(f: Canvas) -> Floats:
    radius, angle = _polar(f, 0.15)
    spread = np.clip(angle / 0.85, -3.0, 3.0)
    lobe = 1.0 - 2.0 * np.abs(spread - np.floor(spread + 0.5))
    return 0.4 + 0.55 * np.clip(lobe, 0, 1) ** 1.2 * np.cos(angle * 0.42) + 0.04 * np.cos(angle * 30) - radius


def _palm(f: Canvas) -> Floats:
    radius, angle = _polar(f, 0.5)
    blades = np.cos(angle * 13.0) * 0.14 * np.minimum(radius, 1.0)
    return np.minimum(np.minimum(1.25 - radius, (1.9 - np.abs(angle)) * radius), blades)


def _pine(f: Canvas) -> Floats:
    angle = f.rng.uniform(-1.1, 1.1, 14)
    root = np.stack([np.zeros(14), np.linspace(0.9, -0.3, 14)], axis=1)
    length = f.rng.uniform(0.7, 1.1, 14)[:, None]
    tips = root + length * np.stack([np.sin(angle), -np.cos(angle)], axis=1)
    return 0.035 - segment_distance(f, root, tips)


_SEASONS = ((0.2, 0.5, 0.15), (0.35, 0.6, 0.2), (0.75, 0.6, 0.15), (0.7, 0.3, 0.12), (0.15, 0.35, 0.2))
_OWN = partial(Canvas.figure, radius=(0.8, 0.95), turn=0.25, shift=0.06, warp=0.03)
_WILD = partial(Canvas.figure, radius=(0.55, 0.85), turn=1.2, shift=0.2, warp=0.1)


def _draw(
    depth: Callable[[Canvas], Floats],
    rng: np.random.Generator,
    size: int,
    *,
    stance: MakeCanvas,
    clutter: float = 1.0,
) -> Pixels:
    frame = stance(rng, size)
    earth = vary_color(rng, (0.4, 0.33, 0.25), 0.15) + 0.12 * clutter * fractal(rng, size, 5.0)[:, :, None]
    leaf = vary_color(rng, _SEASONS[rng.integers(5)], 0.1) * (1.0 + 0.12 * noise(rng, size, 3)[:, :, None])
    inside = depth(frame)
    stem = np.minimum(0.035 - np.abs(frame.x), np.minimum(1.15 - frame.y, frame.y - 0.3))
    image = blend(earth, earth * 0.6, frame.ink(inside + 0.08, 5.0) * 0.6)  # shadow of the leaf
    image = blend(image, leaf, frame.ink(np.maximum(inside, stem), 2.0))
    rib = np.minimum(0.03 - np.abs(frame.x), inside)
    image = blend(image, np.clip(leaf * 1.3, 0, 1), frame.ink(rib) * 0.7)
    return light_and_quantize(rng, image)


LEAVES = RenderedSet(
    name="leaves",
    template="a photo of a {} leaf.",
    counts={"train": 32, "val": 20, "test": 100},
    draw=partial(_draw, stance=_OWN, clutter=0.3),
    families={
        "lobed": {
            "holly": lambda f: _blade(f, 0.42) + 0.16 * np.abs(np.sin(f.y * 6.5)) - 0.06,
            "ivy": _ivy,
            "maple": _maple,
            "oak": lambda f: _blade(f, 0.5, -0.2) + 0.13 * np.cos((f.y + 0.1 * np.sign(f.x)) * 11.0),
        },
        "narrow": {
            "fern": _fern,
            "palm": _palm,
            "pine": _pine,
            "willow": lambda f: _blade(f, 0.2, 0.1) + 0.01 * np.sin(f.y * 40.0),
        },
        "broad": {
            "birch": lambda f: _blade(f, 0.62, 0.4) + 0.05 * np.sin(f.y * 28.0),
            "clover": _clover,
            "ginkgo": _ginkgo,
            "lotus": _lotus,
        },
    },
)
WILD = replace(LEAVES, draw=partial(_draw, stance=_WILD))
"""The harder renderings that `mini` was pre-trained on."""
