"""`fabrics`: close-ups of 14 kinds of cloth. Fine-grained classes, similar to `textures`."""

from collections.abc import Callable
from math import tau

import numpy as np

from prometar.embedded.canvas import Canvas, Floats, edge, integer_offset, noise
from prometar.embedded.paint import Pixels, blend, light_and_quantize, vary_color
from prometar.embedded.rendered import RenderedSet
from prometar.embedded.textures import lines


def _argyle(c: Canvas) -> Floats:
    diamonds = c.ink(np.sin(np.pi * (c.x + 0.6 * c.y)) * np.sin(np.pi * (c.x - 0.6 * c.y)), 4)
    thin = np.maximum(
        lines(c.x + 0.6 * c.y + 0.5, 0.05, c.pixel), lines(c.x - 0.6 * c.y + 0.5, 0.05, c.pixel)
    )
    return 0.75 * diamonds + 0.5 * thin * (1 - diamonds)


def _basketweave(c: Canvas) -> Floats:
    over = c.ink(np.sin(np.pi * c.x) * np.sin(np.pi * c.y), 2)
    return over * np.abs(np.sin(3 * np.pi * c.x)) + (1 - over) * np.abs(np.sin(3 * np.pi * c.y)) * 0.8


def _corduroy(c: Canvas) -> Floats:
    ribs = np.abs(np.sin(np.pi * c.x * 1.6)) ** 0.7
    return ribs * (0.8 + 0.2 * np.sin(tau * c.y * 2.2 + noise(c.rng, c.size, 5)))


def _denim(c: Canvas) -> Floats:
    twill = c.ink(np.sin(tau * (c.x * 1.3 + c.y * 0.8)), 8)
    return np.clip(0.55 * twill + 0.25 * noise(c.rng, c.size, 8) * np.cos(tau * c.y * 0.2) + 0.2, 0, 1)


def _gingham(c: Canvas) -> Floats:
    across, down = c.ink(np.sin(np.pi * c.x), 3), c.ink(np.sin(np.pi * c.y), 3)
    return 0.5 * across + 0.5 * down


def _herringbone(c: Canvas) -> Floats:
    side = np.where(np.floor(c.x) % 2 == 0, 1.0, -1.0)
    return c.ink(np.sin(tau * (c.y * 1.3 + side * integer_offset(c.x - 0.5))), 8)


def _houndstooth(c: Canvas) -> Floats:
    x, y = c.x % 1.0, c.y % 1.0
    check = ((x < 0.5) & (y < 0.5)).astype(np.float64)
    stripe = np.floor((x - y) * 4.0) % 2
    mixed = ((x < 0.5) != (y < 0.5)) * stripe
    return check + mixed * (1 - check)


def _knit(c: Canvas) -> Floats:
    x = integer_offset(c.x)
    slope = c.y * 1.4 - np.abs(x) * 1.4
    return np.clip(
        np.abs(np.sin(np.pi * slope)) ** 0.8 * (0.35 + 0.65 * np.sin(tau * np.abs(x)) ** 0.5), 0, 1
    )


def _lace(c: Canvas) -> Floats:
    net = np.maximum(lines((c.x + c.y) * 1.5, 0.09, c.pixel), lines((c.x - c.y) * 1.5, 0.09, c.pixel))
    angle = np.arctan2(integer_offset(c.y * 0.6), integer_offset(c.x * 0.6))
    flower = c.ink(
        0.3 + 0.1 * np.cos(6 * angle) - np.hypot(integer_offset(c.x * 0.6), integer_offset(c.y * 0.6)), 3
    )
    return np.clip(np.maximum(0.7 * net, flower * (0.7 + 0.3 * np.cos(6 * angle))), 0, 1)


def _mesh(c: Canvas) -> Floats:
    hole = np.minimum(
        np.hypot(integer_offset(c.x), integer_offset(c.y)),
        np.hypot(integer_offset(c.x + 0.5), integer_offset(c.y + 0.5)),
    )
    return c.ink(hole - c.rng.uniform(0.2, 0.26), 3)


def _pinstripe(c: Canvas) -> Floats:
    return 0.85 * lines(c.x * 0.8, 0.06, c.pixel) + 0.1 * np.abs(np.sin(6 * np.pi * c.y))


def _seersucker(c: Canvas) -> Floats:
    stripe = c.ink(np.sin(tau * c.x * 0.6), 5)
    pucker = np.abs(np.sin(tau * (c.y * 0.9 + 0.3 * noise(c.rng, c.size, 6))))
    return stripe * (0.45 + 0.55 * pucker)


def _tartan(c: Canvas) -> Floats:
    widths = c.rng.uniform(0.05, 0.25, 3)

    def bands(v: Floats) -> Floats:
        first = c.ink(widths[0] + 0.1 - np.abs(integer_offset(v * 0.5)), 2)
        second = c.ink(0.05 - np.abs(integer_offset(v * 0.5 + 0.5)), 2)
        third = c.ink(0.04 - np.abs(integer_offset(v * 0.5 + 0.36)), 2)
        return np.maximum(np.maximum(first, second), 0.7 * third)

    twill = c.ink(np.sin(tau * (c.x + c.y) * 2), 8)
    return np.clip(bands(c.x) * (0.35 + 0.3 * twill) + bands(c.y) * (0.65 - 0.3 * twill), 0, 1)


def _tweed(c: Canvas) -> Floats:
    side = np.where(np.floor(c.x * 0.6) % 2 == 0, 1.0, -1.0)
    faint = c.ink(np.sin(tau * (c.y + side * c.x * 0.7)), 10)
    nubs = edge(np.abs(noise(c.rng, c.size, 14)) - 1.3, 0.6)
    return np.clip(0.3 * faint + 0.3 + 0.3 * noise(c.rng, c.size, 16) + 0.5 * nubs, 0, 1)


_DYES = ((0.2, 0.3, 0.55), (0.6, 0.15, 0.2), (0.25, 0.4, 0.25), (0.4, 0.3, 0.2), (0.35, 0.35, 0.4))


def _draw(pattern: Callable[[Canvas], Floats], rng: np.random.Generator, size: int) -> Pixels:
    canvas = Canvas.pattern(rng, size, float(np.exp(rng.uniform(1.2, 2.0))), turn=0.5, warp=0.08)
    dye, plain = vary_color(rng, _DYES[rng.integers(5)], 0.15), vary_color(rng, (0.8, 0.78, 0.72), 0.18)
    background, color = (dye, plain) if rng.random() < 0.5 else (plain, dye)
    threads = 0.06 * (np.sin(tau * canvas.x * 5) + np.sin(tau * canvas.y * 5))
    image = blend(background, color, pattern(canvas)) * (1.0 + threads[:, :, None])
    return light_and_quantize(rng, image * (1.0 + 0.1 * noise(rng, size, 2)[:, :, None]))


FABRICS = RenderedSet(
    name="fabrics",
    template="a photo of {} fabric.",
    counts={"train": 32, "val": 20, "test": 90},
    draw=_draw,
    families={
        "checked": {"argyle": _argyle, "gingham": _gingham, "houndstooth": _houndstooth, "tartan": _tartan},
        "ribbed": {"corduroy": _corduroy, "pinstripe": _pinstripe, "seersucker": _seersucker},
        "twilled": {"denim": _denim, "herringbone": _herringbone, "tweed": _tweed},
        "knotted": {"basketweave": _basketweave, "knit": _knit, "lace": _lace, "mesh": _mesh},
    },
)
