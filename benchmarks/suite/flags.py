"""`flags`: 16 patterns of flags (divisions and ordinaries) in typical colors, on waving cloth."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from prometar.embedded.canvas import Canvas, Floats, MakeCanvas, integer_offset, noise
from prometar.embedded.paint import Pixels, blend, quantize, vary_color
from prometar.embedded.rendered import RenderedSet

_DARK = ((0.75, 0.08, 0.12), (0.05, 0.15, 0.5), (0.0, 0.42, 0.2), (0.1, 0.1, 0.1), (0.4, 0.1, 0.4))
_LIGHT = ((0.95, 0.95, 0.95), (0.98, 0.82, 0.1), (0.45, 0.7, 0.95), (0.98, 0.6, 0.2))


def _band(value: Floats, half: float) -> Floats:
    return half - np.abs(value)


def _chequy(f: Canvas) -> Floats:
    count = f.rng.integers(2, 4)
    return np.sin(np.pi * f.x * count) * np.sin(np.pi * f.y * count) * 0.2


def _cross(f: Canvas) -> Floats:
    half = f.rng.uniform(0.12, 0.25)
    return np.maximum(_band(f.x + f.rng.uniform(0.0, 0.3), half), _band(f.y, half))


def _lozengy(f: Canvas) -> Floats:
    count = f.rng.integers(2, 4)
    return np.sin(np.pi * (f.x + f.y * 0.6) * count) * np.sin(np.pi * (f.x - f.y * 0.6) * count) * 0.2


def _pall(f: Canvas) -> Floats:
    half = f.rng.uniform(0.1, 0.2)
    arms = _band((np.abs(f.y) + f.x) * 0.7, half)
    return np.maximum(np.minimum(arms, 0.1 - f.x), np.minimum(_band(f.y, half), f.x))


def _saltire(f: Canvas) -> Floats:
    half = f.rng.uniform(0.1, 0.2)
    return np.maximum(_band((f.x - f.y) * 0.7, half), _band((f.x + f.y) * 0.7, half))


_OWN = partial(Canvas.figure, radius=(0.9, 1.05), turn=0.06, shift=0.04, warp=0.03)
_WILD = partial(Canvas.figure, radius=(0.8, 1.05), turn=0.15, shift=0.08, warp=0.06)


def _draw(
    depth: Callable[[Canvas], Floats], rng: np.random.Generator, size: int, *, stance: MakeCanvas
) -> Pixels:
    frame = stance(rng, size)
    dark, light = vary_color(rng, _DARK[rng.integers(5)]), vary_color(rng, _LIGHT[rng.integers(4)], 0.05)
    background, color = (dark, light) if rng.random() < 0.5 else (light, dark)
    cloth = blend(background, color, frame.ink(depth(frame), 2.0))
    folds = 1.0 + 0.12 * np.sin(frame.x * rng.uniform(3.0, 6.0) + noise(rng, size, 1.5))
    sky = vary_color(rng, (0.6, 0.7, 0.8), 0.2)
    out = frame.ink(np.maximum(np.abs(frame.x), np.abs(frame.y)) - 1.0)
    image = blend(cloth * folds[:, :, None], sky, out)
    return quantize(image + 0.03 * rng.standard_normal((size, size, 1)))


FLAGS = RenderedSet(
    name="flags",
    template="a photo of a {}, on a flag.",
    counts={"train": 32, "val": 20, "test": 80},
    draw=partial(_draw, stance=_OWN),
    families={
        "stripy": {
            "barry": lambda f: 0.25 - np.abs(integer_offset(f.y * f.rng.integers(2, 4))),
            "bend": lambda f: _band((f.x - f.y) * 0.7, f.rng.uniform(0.15, 0.28)),
            "fess": lambda f: _band(f.y, f.rng.uniform(0.18, 0.36)),
            "pale": lambda f: _band(f.x, f.rng.uniform(0.18, 0.36)),
        },
        "divided": {
            "chequy": _chequy,
            "gyronny": lambda f: np.sin(4.0 * np.arctan2(f.y, f.x)) * np.hypot(f.x, f.y) * 0.25,
            "lozengy": _lozengy,
            "pile": lambda f: (f.rng.uniform(0.1, 0.7) - f.x - 1.6 * np.abs(f.y)) * 0.5,
            "quarterly": lambda f: np.where(f.x * f.y > 0, 1.0, -1.0) * np.minimum(np.abs(f.x), np.abs(f.y)),
        },
        "crossed": {
            "chevron": lambda f: _band((f.y - np.abs(f.x) * 0.8 + 0.35) * 0.8, f.rng.uniform(0.14, 0.24)),
            "cross": _cross,
            "pall": _pall,
            "saltire": _saltire,
        },
        "charged": {
            "bordure": lambda f: np.maximum(np.abs(f.x), np.abs(f.y)) - f.rng.uniform(0.62, 0.78),
            "canton": lambda f: np.minimum(
                -f.x - f.rng.uniform(-0.05, 0.2), -f.y - f.rng.uniform(-0.05, 0.2)
            ),
            "roundel": lambda f: f.rng.uniform(0.35, 0.6) - np.hypot(f.x, f.y),
        },
    },
)
WILD = replace(FLAGS, draw=partial(_draw, stance=_WILD))
"""The harder renderings that `mini` was pre-trained on."""
