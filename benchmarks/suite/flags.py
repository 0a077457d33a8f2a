"""`flags`: 16 patterns of flags (divisions and ordinaries) in typical colors, on waving cloth."""

from dataclasses import replace
from functools import partial

import numpy as np

from prometar.embedded.canvas import Canvas, Floats, MakeCanvas, Shape, integer_offset, noise
from prometar.embedded.paint import Pixels, blend, quantize, vary_color
from prometar.embedded.rendered import RenderedSet

# RGB
_DARK = ((0.75, 0.08, 0.12), (0.05, 0.15, 0.5), (0.0, 0.42, 0.2), (0.1, 0.1, 0.1), (0.4, 0.1, 0.4))
_LIGHT = ((0.95, 0.95, 0.95), (0.98, 0.82, 0.1), (0.45, 0.7, 0.95), (0.98, 0.6, 0.2))


def _band(value: Floats, half_width: float) -> Floats:
    """Return the depth (H, W) in a band around `value` = 0."""
    return half_width - np.abs(value)


def _barry(canvas: Canvas) -> Floats:
    return 0.25 - np.abs(integer_offset(canvas.y * canvas.rng.integers(2, 4)))


def _bend(canvas: Canvas) -> Floats:
    return _band((canvas.x - canvas.y) * 0.7, canvas.rng.uniform(0.15, 0.28))


def _bordure(canvas: Canvas) -> Floats:
    return np.maximum(np.abs(canvas.x), np.abs(canvas.y)) - canvas.rng.uniform(0.62, 0.78)


def _canton(canvas: Canvas) -> Floats:
    left = -canvas.x - canvas.rng.uniform(-0.05, 0.2)
    top = -canvas.y - canvas.rng.uniform(-0.05, 0.2)
    return np.minimum(left, top)


def _chequy(canvas: Canvas) -> Floats:
    count = canvas.rng.integers(2, 4)
    return np.sin(np.pi * canvas.x * count) * np.sin(np.pi * canvas.y * count) * 0.2


def _chevron(canvas: Canvas) -> Floats:
    return _band((canvas.y - np.abs(canvas.x) * 0.8 + 0.35) * 0.8, canvas.rng.uniform(0.14, 0.24))


def _cross(canvas: Canvas) -> Floats:
    half_width = canvas.rng.uniform(0.12, 0.25)
    shift = canvas.rng.uniform(0.0, 0.3)
    return np.maximum(_band(canvas.x + shift, half_width), _band(canvas.y, half_width))


def _fess(canvas: Canvas) -> Floats:
    return _band(canvas.y, canvas.rng.uniform(0.18, 0.36))


def _gyronny(canvas: Canvas) -> Floats:
    return np.sin(4.0 * np.arctan2(canvas.y, canvas.x)) * np.hypot(canvas.x, canvas.y) * 0.25


def _lozengy(canvas: Canvas) -> Floats:
    count = canvas.rng.integers(2, 4)
    down = np.sin(np.pi * (canvas.x + canvas.y * 0.6) * count)
    up = np.sin(np.pi * (canvas.x - canvas.y * 0.6) * count)
    return down * up * 0.2


def _pale(canvas: Canvas) -> Floats:
    return _band(canvas.x, canvas.rng.uniform(0.18, 0.36))


def _pall(canvas: Canvas) -> Floats:
    half_width = canvas.rng.uniform(0.1, 0.2)
    arms = np.minimum(_band((np.abs(canvas.y) + canvas.x) * 0.7, half_width), 0.1 - canvas.x)
    stem = np.minimum(_band(canvas.y, half_width), canvas.x)
    return np.maximum(arms, stem)


def _pile(canvas: Canvas) -> Floats:
    return (canvas.rng.uniform(0.1, 0.7) - canvas.x - 1.6 * np.abs(canvas.y)) * 0.5


def _quarterly(canvas: Canvas) -> Floats:
    sign = np.where(canvas.x * canvas.y > 0, 1.0, -1.0)
    return sign * np.minimum(np.abs(canvas.x), np.abs(canvas.y))


def _roundel(canvas: Canvas) -> Floats:
    return canvas.rng.uniform(0.35, 0.6) - np.hypot(canvas.x, canvas.y)


def _saltire(canvas: Canvas) -> Floats:
    half_width = canvas.rng.uniform(0.1, 0.2)
    down = _band((canvas.x - canvas.y) * 0.7, half_width)
    up = _band((canvas.x + canvas.y) * 0.7, half_width)
    return np.maximum(down, up)


_OWN = partial(Canvas.figure, radius=(0.9, 1.05), turn=0.06, shift=0.04, warp=0.03)
_WILD = partial(Canvas.figure, radius=(0.8, 1.05), turn=0.15, shift=0.08, warp=0.06)


def _draw(shape: Shape, rng: np.random.Generator, size: int, *, make_canvas: MakeCanvas) -> Pixels:
    """Draw a flag: a shape in one color on cloth of another color, with folds, in front of the sky."""
    canvas = make_canvas(rng, size)
    dark = vary_color(rng, _DARK[rng.integers(5)])
    light = vary_color(rng, _LIGHT[rng.integers(4)], 0.05)
    background, color = (dark, light) if rng.random() < 0.5 else (light, dark)
    cloth = blend(background, color, canvas.ink(shape(canvas), 2.0))
    folds = 1.0 + 0.12 * np.sin(canvas.x * rng.uniform(3.0, 6.0) + noise(rng, size, 1.5))
    sky = vary_color(rng, (0.6, 0.7, 0.8), 0.2)
    outside = canvas.ink(np.maximum(np.abs(canvas.x), np.abs(canvas.y)) - 1.0)
    image = blend(cloth * folds[:, :, None], sky, outside)
    return quantize(image + 0.03 * rng.standard_normal((size, size, 1)))


FLAGS = RenderedSet(
    name="flags",
    template="a photo of a {}, on a flag.",
    counts={"train": 32, "val": 20, "test": 80},
    draw=partial(_draw, make_canvas=_OWN),
    families={
        "stripy": {"barry": _barry, "bend": _bend, "fess": _fess, "pale": _pale},
        "divided": {
            "chequy": _chequy,
            "gyronny": _gyronny,
            "lozengy": _lozengy,
            "pile": _pile,
            "quarterly": _quarterly,
        },
        "crossed": {"chevron": _chevron, "cross": _cross, "pall": _pall, "saltire": _saltire},
        "charged": {"bordure": _bordure, "canton": _canton, "roundel": _roundel},
    },
)
WILD = replace(FLAGS, draw=partial(_draw, make_canvas=_WILD))
"""The harder renderings that `mini` was pre-trained on."""
