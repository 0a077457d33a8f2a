"""`fabrics`: close-ups of 14 kinds of cloth. Fine-grained classes, similar to `textures`."""

from collections.abc import Callable
from math import tau

import numpy as np

from prometar.embedded.canvas import Canvas, Floats, edge, integer_offset, noise
from prometar.embedded.paint import Pixels, blend, light_and_quantize, vary_color
from prometar.embedded.rendered import RenderedSet
from prometar.embedded.textures import lines


def _argyle(canvas: Canvas) -> Floats:
    diamonds = canvas.ink(
        np.sin(np.pi * (canvas.x + 0.6 * canvas.y)) * np.sin(np.pi * (canvas.x - 0.6 * canvas.y)), 4
    )
    falling = lines(canvas.x + 0.6 * canvas.y + 0.5, 0.05, canvas.pixel)
    rising = lines(canvas.x - 0.6 * canvas.y + 0.5, 0.05, canvas.pixel)
    return 0.75 * diamonds + 0.5 * np.maximum(falling, rising) * (1 - diamonds)


def _basketweave(canvas: Canvas) -> Floats:
    over = canvas.ink(np.sin(np.pi * canvas.x) * np.sin(np.pi * canvas.y), 2)
    upright = np.abs(np.sin(3 * np.pi * canvas.x))
    level = np.abs(np.sin(3 * np.pi * canvas.y))
    return over * upright + (1 - over) * level * 0.8


def _corduroy(canvas: Canvas) -> Floats:
    ribs = np.abs(np.sin(np.pi * canvas.x * 1.6)) ** 0.7
    return ribs * (0.8 + 0.2 * np.sin(tau * canvas.y * 2.2 + noise(canvas.rng, canvas.size, 5)))


def _denim(canvas: Canvas) -> Floats:
    twill = canvas.ink(np.sin(tau * (canvas.x * 1.3 + canvas.y * 0.8)), 8)
    return np.clip(
        0.55 * twill + 0.25 * noise(canvas.rng, canvas.size, 8) * np.cos(tau * canvas.y * 0.2) + 0.2, 0, 1
    )


def _gingham(canvas: Canvas) -> Floats:
    upright = canvas.ink(np.sin(np.pi * canvas.x), 3)
    level = canvas.ink(np.sin(np.pi * canvas.y), 3)
    return 0.5 * upright + 0.5 * level


def _herringbone(canvas: Canvas) -> Floats:
    side = np.where(np.floor(canvas.x) % 2 == 0, 1.0, -1.0)
    return canvas.ink(np.sin(tau * (canvas.y * 1.3 + side * integer_offset(canvas.x - 0.5))), 8)


def _houndstooth(canvas: Canvas) -> Floats:
    x = canvas.x % 1.0
    y = canvas.y % 1.0
    check = ((x < 0.5) & (y < 0.5)).astype(np.float64)
    stripe = np.floor((x - y) * 4.0) % 2
    mixed = ((x < 0.5) != (y < 0.5)) * stripe
    return check + mixed * (1 - check)


def _knit(canvas: Canvas) -> Floats:
    x = integer_offset(canvas.x)
    slope = canvas.y * 1.4 - np.abs(x) * 1.4
    rows = np.abs(np.sin(np.pi * slope)) ** 0.8
    columns = 0.35 + 0.65 * np.sin(tau * np.abs(x)) ** 0.5
    return np.clip(rows * columns, 0, 1)


def _lace(canvas: Canvas) -> Floats:
    falling = lines((canvas.x + canvas.y) * 1.5, 0.09, canvas.pixel)
    rising = lines((canvas.x - canvas.y) * 1.5, 0.09, canvas.pixel)
    net = np.maximum(falling, rising)
    x = integer_offset(canvas.x * 0.6)
    y = integer_offset(canvas.y * 0.6)
    petals = np.cos(6 * np.arctan2(y, x))
    flower = canvas.ink(0.3 + 0.1 * petals - np.hypot(x, y), 3)
    return np.clip(np.maximum(0.7 * net, flower * (0.7 + 0.3 * petals)), 0, 1)


def _mesh(canvas: Canvas) -> Floats:
    straight = np.hypot(integer_offset(canvas.x), integer_offset(canvas.y))
    staggered = np.hypot(integer_offset(canvas.x + 0.5), integer_offset(canvas.y + 0.5))
    distance = np.minimum(straight, staggered)  # to the middle of the nearest hole
    return canvas.ink(distance - canvas.rng.uniform(0.2, 0.26), 3)


def _pinstripe(canvas: Canvas) -> Floats:
    return 0.85 * lines(canvas.x * 0.8, 0.06, canvas.pixel) + 0.1 * np.abs(np.sin(6 * np.pi * canvas.y))


def _seersucker(canvas: Canvas) -> Floats:
    stripe = canvas.ink(np.sin(tau * canvas.x * 0.6), 5)
    pucker = np.abs(np.sin(tau * (canvas.y * 0.9 + 0.3 * noise(canvas.rng, canvas.size, 6))))
    return stripe * (0.45 + 0.55 * pucker)


def _tartan(canvas: Canvas) -> Floats:
    widths = canvas.rng.uniform(0.05, 0.25, 3)

    def bands(value: Floats) -> Floats:
        first = canvas.ink(widths[0] + 0.1 - np.abs(integer_offset(value * 0.5)), 2)
        second = canvas.ink(0.05 - np.abs(integer_offset(value * 0.5 + 0.5)), 2)
        third = canvas.ink(0.04 - np.abs(integer_offset(value * 0.5 + 0.36)), 2)
        return np.maximum(np.maximum(first, second), 0.7 * third)

    twill = canvas.ink(np.sin(tau * (canvas.x + canvas.y) * 2), 8)
    return np.clip(bands(canvas.x) * (0.35 + 0.3 * twill) + bands(canvas.y) * (0.65 - 0.3 * twill), 0, 1)


def _tweed(canvas: Canvas) -> Floats:
    side = np.where(np.floor(canvas.x * 0.6) % 2 == 0, 1.0, -1.0)
    faint = canvas.ink(np.sin(tau * (canvas.y + side * canvas.x * 0.7)), 10)
    nubs = edge(np.abs(noise(canvas.rng, canvas.size, 14)) - 1.3, 0.6)
    return np.clip(0.3 * faint + 0.3 + 0.3 * noise(canvas.rng, canvas.size, 16) + 0.5 * nubs, 0, 1)


# RGB
_DYES = ((0.2, 0.3, 0.55), (0.6, 0.15, 0.2), (0.25, 0.4, 0.25), (0.4, 0.3, 0.2), (0.35, 0.35, 0.4))


def _draw(pattern: Callable[[Canvas], Floats], rng: np.random.Generator, size: int) -> Pixels:
    """Draw a pattern of dyed and plain threads, which are visible as fine stripes."""
    tiles = float(np.exp(rng.uniform(1.2, 2.0)))
    canvas = Canvas.pattern(rng, size, tiles, turn=0.5, warp=0.08)
    dye = vary_color(rng, _DYES[rng.integers(5)], 0.15)
    plain = vary_color(rng, (0.8, 0.78, 0.72), 0.18)
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
