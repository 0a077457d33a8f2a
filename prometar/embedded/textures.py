"""Dataset `textures`: 32 patterns. The backbone `mini` was pretrained on other images of the same patterns.

Some classes look alike, such as dotted and freckled (both base classes) or lined and striped (both new).
Pattern functions return an array of ink (height, width): about 0 for the background, 1 for the second color.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import tau

import numpy as np

from prometar.embedded.canvas import Canvas, Floats, edge, fractal, integer_offset, noise, scatter, voronoi
from prometar.embedded.paint import Pixels, blend, contrasting_colors, light_and_quantize
from prometar.embedded.rendered import RenderedSet


@dataclass(frozen=True)
class Pattern:
    """Pattern of a class, and arguments for `Canvas.pattern`. `tiles` is a range to sample from."""

    draw: Callable[[Canvas], Floats]
    tiles: tuple[float, float] = (4.0, 8.0)
    turn: float = np.pi
    warp: float = 0.05


def lines(value: Floats, half_width: float, pixel: float) -> Floats:
    """Draw lines where `value` is an integer, in whose units `half_width` is. `pixel`: softness."""
    return edge(half_width - np.abs(integer_offset(value)), 1.5 * pixel)


def spots(
    c: Canvas, radius: tuple[float, float], *, spacing: float, jitter: float, keep: float = 1.0
) -> Floats:
    """Draw spots on a jittered grid, each with probability `keep`. `radius`: range of radii in tiles."""
    ink = np.zeros(c.x.shape)
    for px, py in zip(*scatter(c, spacing, jitter), strict=True):
        kept = c.rng.random() < keep
        r = c.rng.uniform(*radius)
        if kept:
            ink = np.maximum(ink, c.ink(r - np.hypot(c.x - px, c.y - py)))
    return ink


def relief(canvas: Canvas, height: Floats, strength: float = 0.6) -> Floats:
    """Return the brightness (0 to 1) of a surface that is lit from a random side. `height` is in tiles."""
    angle = canvas.rng.uniform(0.0, 2.0 * np.pi)
    slope_y, slope_x = np.gradient(height, canvas.pixel)
    slope = slope_x * np.cos(angle) + slope_y * np.sin(angle)
    return 0.5 + 0.5 * slope * strength / np.sqrt(1.0 + (slope * strength) ** 2)


def _layers(c: Canvas, value: Floats, thickness: tuple[float, float], edge_width: float) -> Floats:
    """Draw layers between contours of `value`. `thickness`: range of layer thicknesses. Tones are random."""
    ink = np.full(value.shape, 0.5)
    start = float(value.min())
    tone = 0.5
    while start < value.max():
        next_tone = (tone + c.rng.uniform(0.3, 0.7)) % 1.0
        ink = ink + (next_tone - tone) * edge(value - start, edge_width)
        start += c.rng.uniform(*thickness)
        tone = next_tone
    return ink


def blotchy(c: Canvas) -> Floats:
    return 0.7 * edge(fractal(c.rng, c.size, c.tiles * 0.45), 0.8) + 0.3 * edge(noise(c.rng, c.size, 3), 2.0)


def braided(c: Canvas) -> Floats:
    across = integer_offset(c.x)
    ink = np.zeros(c.x.shape)
    for strand in range(3):
        phase = tau * (c.y * 0.6 + strand / 3.0)
        body = np.clip(1.0 - ((across - 0.28 * np.sin(phase)) / 0.2) ** 2, 0.0, 1.0)
        ink = np.maximum(ink, np.sqrt(body) * (0.65 + 0.35 * np.cos(phase * 2.0)))
    return ink


def bubbly(c: Canvas) -> Floats:
    ink = np.zeros(c.x.shape)
    for px, py in zip(*scatter(c, 1.0, 0.35), strict=True):
        radius = c.rng.uniform(0.25, 0.6)
        distance = np.hypot(c.x - px, c.y - py)
        shell = c.ink(0.06 - np.abs(distance - radius), 2.0)
        glint = c.ink(0.3 * radius - np.hypot(c.x - px + 0.35 * radius, c.y - py + 0.35 * radius), 2.0)
        inside = c.ink(radius - distance, 2.0)
        ink = ink * (1.0 - 0.8 * inside) + np.maximum(shell, np.maximum(glint, 0.2 * inside))
    return ink


def bumpy(c: Canvas) -> Floats:
    near, _, _ = voronoi(c, jitter=0.3)
    return relief(c, 0.45 * np.exp(-((near / 0.38) ** 2)))


def cobwebbed(c: Canvas) -> Floats:
    dx, dy = c.x - c.x.mean() - c.rng.uniform(-1, 1), c.y - c.y.mean() - c.rng.uniform(-1, 1)
    num_spokes = c.rng.integers(8, 14)
    sector = np.arctan2(dy, dx) / tau * num_spokes
    radius = np.hypot(dx, dy)
    rings = lines(radius * (1.0 + 0.5 * integer_offset(sector) ** 2) * 1.3, 0.1, c.pixel)
    spokes = c.ink(0.06 - np.abs(integer_offset(sector)) * radius * tau / num_spokes)
    return np.maximum(0.8 * rings, spokes)


def cracked(c: Canvas) -> Floats:
    near, second, owner = voronoi(c, spacing=1.3, jitter=0.5)
    width = 0.05 + 0.05 * np.abs(noise(c.rng, c.size, 3))
    return c.ink(width - (second - near)) * 0.85 + 0.15 * c.rng.random(owner.max() + 1)[owner]


def crosshatched(c: Canvas) -> Floats:
    lean = c.rng.uniform(0.7, 1.2)
    first = lines((c.x + c.y * 0.1) * 1.6, 0.15, c.pixel) * edge(noise(c.rng, c.size, 5) + 0.9, 0.8)
    second = lines((c.x * np.cos(lean) + c.y * np.sin(lean)) * 1.6, 0.15, c.pixel)
    return np.maximum(first, second * edge(noise(c.rng, c.size, 5) + 0.9, 0.8))


def crystalline(c: Canvas) -> Floats:
    _, _, owner = voronoi(c, spacing=1.0, jitter=0.5)
    count = owner.max() + 1
    angle = c.rng.uniform(0.0, tau, count)[owner]
    facet = integer_offset((c.x * np.cos(angle) + c.y * np.sin(angle)) * 0.6)
    return np.clip(c.rng.random(count)[owner] * 0.6 + 0.2 + facet * 0.8, 0.0, 1.0)


def dotted(c: Canvas) -> Floats:
    radius = c.rng.uniform(0.13, 0.2)
    return c.ink(radius - np.hypot(integer_offset(c.x), integer_offset(c.y)))


def fibrous(c: Canvas) -> Floats:
    ink = np.zeros(c.x.shape)
    for strength in (1.0, 0.8, 0.6):
        lean = c.rng.uniform(-0.25, 0.25)
        wave = (c.x + lean * c.y) * c.rng.uniform(1.5, 2.6) + 0.5 * noise(c.rng, c.size, 2.5)
        fibers = edge(np.sin(tau * wave) - 0.6, 0.7) * strength
        ink = np.maximum(ink, fibers * (0.6 + 0.4 * noise(c.rng, c.size, 4)))
    return np.clip(ink, 0.0, 1.0)


def flecked(c: Canvas) -> Floats:
    ink = np.zeros(c.x.shape)
    for px, py in zip(*scatter(c, 0.9, 0.45), strict=True):
        angle = c.rng.uniform(0.0, tau)
        dx = c.x - px
        dy = c.y - py
        along = dx * np.cos(angle) + dy * np.sin(angle)
        across = dy * np.cos(angle) - dx * np.sin(angle)
        ink = np.maximum(ink, c.ink(0.32 - np.hypot(along, across * 3.2), 2.0))
    return ink


def freckled(c: Canvas) -> Floats:
    ink = spots(c, (0.06, 0.24), spacing=0.75, jitter=0.5, keep=0.75)
    return ink * (0.75 + 0.12 * noise(c.rng, c.size, 4))


def grid(c: Canvas) -> Floats:
    half = c.rng.uniform(0.06, 0.1)
    return np.maximum(lines(c.x, half, c.pixel), lines(c.y, half, c.pixel))


def grooved(c: Canvas) -> Floats:
    profile = np.abs(np.sin(np.pi * c.x)) ** 0.5
    return 0.6 * relief(c, 0.3 * profile, 1.0) + 0.4 * profile


def honeycombed(c: Canvas) -> Floats:
    root = np.sqrt(3.0)
    distance = np.full(c.x.shape, 1e9)
    for shift in (0.0, 0.5):
        dx, dy = np.abs(integer_offset(c.x + shift)), np.abs(integer_offset(c.y / root + shift)) * root
        distance = np.minimum(distance, np.maximum(dx, 0.5 * dx + 0.5 * root * dy))
    return c.ink(distance - c.rng.uniform(0.4, 0.44))


def marbled(c: Canvas) -> Floats:
    flow = c.x * 0.35 + 0.55 * fractal(c.rng, c.size, 1.5, 4)
    return 0.75 * np.abs(np.sin(np.pi * flow)) ** 0.6 + 0.25 * edge(noise(c.rng, c.size, 3), 2.0)


def pitted(c: Canvas) -> Floats:
    pits = spots(c, (0.1, 0.22), spacing=1.0, jitter=0.45, keep=0.8)
    return 0.75 * relief(c, -0.25 * pits, 0.7) + 0.25 * (1.0 - pits)


def polka_dotted(c: Canvas) -> Floats:
    radius = c.rng.uniform(0.27, 0.34)
    straight = np.hypot(integer_offset(c.x), integer_offset(c.y))
    staggered = np.hypot(integer_offset(c.x + 0.5), integer_offset(c.y + 0.5))
    return c.ink(radius - np.minimum(straight, staggered))


def porous(c: Canvas) -> Floats:
    return edge(0.75 - fractal(c.rng, c.size, c.tiles * 1.1, 2), 0.5) * (0.9 + 0.1 * noise(c.rng, c.size, 4))


def scaly(c: Canvas) -> Floats:
    ink = np.zeros(c.x.shape)
    row = np.floor(c.y * 2.0)
    for offset in (2.0, 1.0, 0.0):  # later rows lie on top
        candidate_row = row + 1.0 - offset
        dx, dy = integer_offset(c.x + 0.5 * (candidate_row % 2.0)), c.y - candidate_row * 0.5
        distance = np.hypot(dx, dy + 0.05)
        ink = np.where((distance < 0.56) & (dy > -0.5), 1.0 - c.ink(distance - 0.44, 3.0), ink)
    return ink * (0.7 + 0.3 * (c.y * 2.0 - row))


def spiralled(c: Canvas) -> Floats:
    dx, dy = c.x - c.x.mean() - c.rng.uniform(-1, 1), c.y - c.y.mean() - c.rng.uniform(-1, 1)
    arms = c.rng.integers(1, 3)
    direction = c.rng.choice((-1.0, 1.0))
    return c.ink(np.sin(np.hypot(dx, dy) * tau * 0.8 + direction * arms * np.arctan2(dy, dx)), 6.0)


def stratified(c: Canvas) -> Floats:
    return _layers(c, c.y + 0.35 * fractal(c.rng, c.size, 1.5), (0.15, 0.6), 2.5 * c.pixel)


def studded(c: Canvas) -> Floats:
    distance = np.hypot(integer_offset(c.x), integer_offset(c.y)) / 0.36
    dome = np.sqrt(np.clip(1.0 - distance**2, 0.0, 1.0))
    return 0.6 * relief(c, 0.5 * dome, 0.5) + 0.4 * c.ink(1.0 - distance, 3.0)


def veined(c: Canvas) -> Floats:
    main = edge(0.14 - np.abs(noise(c.rng, c.size, c.tiles * 0.3)), 0.15)
    fine = edge(0.13 - np.abs(noise(c.rng, c.size, c.tiles * 0.6)), 0.2)
    return np.maximum(main, 0.6 * fine)


def waffled(c: Canvas) -> Floats:
    inside = np.maximum(np.abs(integer_offset(c.x)), np.abs(integer_offset(c.y)))
    ridge = edge(inside - 0.33, 0.2)
    return 0.7 * relief(c, 0.35 * ridge, 0.8) + 0.3 * ridge


def woven(c: Canvas) -> Floats:
    over = np.sin(np.pi * c.x) * np.sin(np.pi * c.y) > 0.0
    across = np.where(over, integer_offset(c.x - 0.5), integer_offset(c.y - 0.5))
    along = np.where(over, integer_offset(c.y - 0.5), integer_offset(c.x - 0.5))
    thread = np.sqrt(np.clip(1.0 - (across / 0.46) ** 2, 0.0, 1.0))
    return thread * (0.55 + 0.45 * np.cos(np.pi * along)) * np.where(over, 1.0, 0.65)


def wrinkled(c: Canvas) -> Floats:
    coarse, fine = (np.abs(noise(c.rng, c.size, c.tiles * factor, 1.8)) for factor in (0.5, 1.0))
    return relief(c, -0.7 * (coarse + 0.5 * fine), 0.8)


def _draw(pattern: Pattern, rng: np.random.Generator, size: int) -> Pixels:
    low, high = pattern.tiles
    tiles = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    ink = pattern.draw(Canvas.pattern(rng, size, tiles, turn=pattern.turn, warp=pattern.warp))
    background, color = contrasting_colors(rng)
    return light_and_quantize(rng, blend(background, color, ink))


TEXTURES = RenderedSet(
    name="textures",
    template="a photo of a {}.",
    counts={"train": 32, "val": 20, "test": 50},
    draw=_draw,
    families={
        "linear": {
            "banded": Pattern(lambda c: _layers(c, c.x, (0.6, 1.4), 2.0 * c.pixel)),
            "crosshatched": Pattern(crosshatched, (4.0, 7.0)),
            "fibrous": Pattern(fibrous),
            "grooved": Pattern(grooved),
            "lined": Pattern(
                lambda c: lines(c.x + 0.12 * np.sin(c.x * 1.7), c.rng.uniform(0.06, 0.11), c.pixel)
            ),
            "stratified": Pattern(stratified, turn=0.4),
            "striped": Pattern(lambda c: c.ink(np.sin(tau * c.x * 0.7), 5.0)),
            "zigzagged": Pattern(lambda c: c.ink(np.sin(tau * (0.8 * c.x + abs(integer_offset(c.y)))), 6.0)),
        },
        "spotted": {
            "blotchy": Pattern(blotchy),
            "dotted": Pattern(dotted),
            "flecked": Pattern(flecked, (4.0, 6.0)),
            "freckled": Pattern(freckled, (3.5, 5.5)),
            "pitted": Pattern(pitted, (3.5, 6.0)),
            "polka-dotted": Pattern(polka_dotted, (3.0, 5.5)),
            "porous": Pattern(porous),
            "studded": Pattern(studded, (3.5, 6.5)),
        },
        "netted": {
            "cobwebbed": Pattern(cobwebbed),
            "cracked": Pattern(cracked, warp=0.15),
            "crystalline": Pattern(crystalline, (3.5, 6.0)),
            "honeycombed": Pattern(honeycombed),
            "scaly": Pattern(scaly, (3.0, 5.5), turn=0.6),
            "veined": Pattern(veined),
        },
        "regular": {
            "braided": Pattern(braided, (2.5, 4.5)),
            "chequered": Pattern(lambda c: c.ink(np.sin(np.pi * c.x) * np.sin(np.pi * c.y), 5.0)),
            "grid": Pattern(grid),
            "waffled": Pattern(waffled, (3.5, 6.5)),
            "woven": Pattern(woven),
        },
        "uneven": {
            "bubbly": Pattern(bubbly, (3.0, 5.0)),
            "bumpy": Pattern(bumpy, (3.5, 6.0)),
            "marbled": Pattern(marbled),
            "spiralled": Pattern(spiralled),
            "wrinkled": Pattern(wrinkled),
        },
    },
    salted=False,  # seeds do not depend on the dataset's name: pixels are as in earlier releases
)
