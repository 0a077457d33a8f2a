"""Dataset `textures`: 32 patterns. The backbone `mini` was pretrained on other images of the same patterns.

Some classes look alike, such as dotted and freckled (both base classes), or lined and striped (both new).

A pattern function is named like its class. It returns ink (H, W), which is about 0 for the background and 1
for the second color. A tile of the pattern has size 1 in the coordinates of the canvas.
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
    """Pattern of a class.

    Args:
        draw: Pattern function.
        tiles: Range from which the number of tiles across the image is sampled, on a log scale.
        turn: Maximum angle in radians by which the pattern is turned.
        warp: Typical displacement by the warp, in tiles.
    """

    draw: Callable[[Canvas], Floats]
    tiles: tuple[float, float] = (4.0, 8.0)
    turn: float = np.pi
    warp: float = 0.05


def lines(value: Floats, half_width: float, pixel: float) -> Floats:
    """Return ink of lines where `value` (H, W) is an integer.

    Args:
        half_width: Half the width of a line, in units of `value`.
        pixel: Size of a pixel, in units of `value`. It determines how soft the edges are.
    """
    return edge(half_width - np.abs(integer_offset(value)), 1.5 * pixel)


def spots(
    canvas: Canvas, radius: tuple[float, float], *, spacing: float, jitter: float, keep: float = 1.0
) -> Floats:
    """Return ink of spots around the points of `scatter`.

    Args:
        radius: Range of radii in tiles.
        spacing, jitter: Arguments of `scatter`.
        keep: Probability of each spot. Default: 1.
    """
    centers_x, centers_y = scatter(canvas, spacing, jitter)
    ink = np.zeros(canvas.x.shape)
    for x, y in zip(centers_x, centers_y, strict=True):
        is_kept = canvas.rng.random() < keep
        spot_radius = canvas.rng.uniform(*radius)
        if is_kept:
            spot = canvas.ink(spot_radius - np.hypot(canvas.x - x, canvas.y - y))
            ink = np.maximum(ink, spot)
    return ink


def relief(canvas: Canvas, height: Floats, strength: float = 0.6) -> Floats:
    """Return the brightness (H, W), in 0..1, of a surface that is lit from a random side.

    Args:
        height: (H, W) height of the surface in tiles.
        strength: Factor of the slopes.
    """
    angle = canvas.rng.uniform(0.0, 2.0 * np.pi)
    slope_y, slope_x = np.gradient(height, canvas.pixel)
    slope = slope_x * np.cos(angle) + slope_y * np.sin(angle)  # in the direction of the light
    return 0.5 + 0.5 * slope * strength / np.sqrt(1.0 + (slope * strength) ** 2)


def _layers(canvas: Canvas, value: Floats, thickness: tuple[float, float], edge_width: float) -> Floats:
    """Return ink of layers of random tones between contours of `value` (H, W).

    Args:
        thickness: Range of the layers' thicknesses, in units of `value`.
        edge_width: Width of the soft edges, in units of `value`.
    """
    tone = 0.5
    ink = np.full(value.shape, tone)
    start = float(value.min())
    while start < value.max():
        next_tone = (tone + canvas.rng.uniform(0.3, 0.7)) % 1.0
        ink = ink + (next_tone - tone) * edge(value - start, edge_width)
        start += canvas.rng.uniform(*thickness)
        tone = next_tone
    return ink


def banded(canvas: Canvas) -> Floats:
    return _layers(canvas, canvas.x, (0.6, 1.4), 2.0 * canvas.pixel)


def blotchy(canvas: Canvas) -> Floats:
    blotches = edge(fractal(canvas.rng, canvas.size, canvas.tiles * 0.45), 0.8)
    return 0.7 * blotches + 0.3 * edge(noise(canvas.rng, canvas.size, 3), 2.0)


def braided(canvas: Canvas) -> Floats:
    across = integer_offset(canvas.x)
    ink = np.zeros(canvas.x.shape)
    for strand in range(3):
        phase = tau * (canvas.y * 0.6 + strand / 3.0)
        offset = (across - 0.28 * np.sin(phase)) / 0.2  # -1 and 1 at the edges of the strand
        roundness = np.sqrt(np.clip(1.0 - offset**2, 0.0, 1.0))
        ink = np.maximum(ink, roundness * (0.65 + 0.35 * np.cos(phase * 2.0)))
    return ink


def bubbly(canvas: Canvas) -> Floats:
    centers_x, centers_y = scatter(canvas, 1.0, 0.35)
    ink = np.zeros(canvas.x.shape)
    for x, y in zip(centers_x, centers_y, strict=True):
        radius = canvas.rng.uniform(0.25, 0.6)
        dx = canvas.x - x
        dy = canvas.y - y
        distance = np.hypot(dx, dy)
        shell = canvas.ink(0.06 - np.abs(distance - radius), 2.0)
        shift = 0.35 * radius  # the glint is up and left of the middle
        glint = canvas.ink(0.3 * radius - np.hypot(dx + shift, dy + shift), 2.0)
        inside = canvas.ink(radius - distance, 2.0)
        bubble = np.maximum(shell, np.maximum(glint, 0.2 * inside))
        ink = ink * (1.0 - 0.8 * inside) + bubble  # the bubble covers most of the bubbles behind it
    return ink


def bumpy(canvas: Canvas) -> Floats:
    distance, _, _ = voronoi(canvas, jitter=0.3)
    return relief(canvas, 0.45 * np.exp(-((distance / 0.38) ** 2)))


def chequered(canvas: Canvas) -> Floats:
    return canvas.ink(np.sin(np.pi * canvas.x) * np.sin(np.pi * canvas.y), 5.0)


def _from_center(canvas: Canvas) -> tuple[Floats, Floats]:
    """Return x and y (H, W) relative to a random point near the middle of the image."""
    dx = canvas.x - canvas.x.mean() - canvas.rng.uniform(-1, 1)
    dy = canvas.y - canvas.y.mean() - canvas.rng.uniform(-1, 1)
    return dx, dy


def cobwebbed(canvas: Canvas) -> Floats:
    dx, dy = _from_center(canvas)
    num_spokes = canvas.rng.integers(8, 14)
    sector = np.arctan2(dy, dx) / tau * num_spokes
    from_spoke = integer_offset(sector)  # in sectors
    radius = np.hypot(dx, dy)
    rings = lines(radius * (1.0 + 0.5 * from_spoke**2) * 1.3, 0.1, canvas.pixel)
    spokes = canvas.ink(0.06 - np.abs(from_spoke) * radius * tau / num_spokes)
    return np.maximum(0.8 * rings, spokes)


def cracked(canvas: Canvas) -> Floats:
    first, second, owner = voronoi(canvas, spacing=1.3, jitter=0.5)
    width = 0.05 + 0.05 * np.abs(noise(canvas.rng, canvas.size, 3))
    cracks = canvas.ink(width - (second - first))
    tone = canvas.rng.random(owner.max() + 1)[owner]  # one per Voronoi cell
    return cracks * 0.85 + 0.15 * tone


def crosshatched(canvas: Canvas) -> Floats:
    lean = canvas.rng.uniform(0.7, 1.2)  # in radians
    first = lines((canvas.x + canvas.y * 0.1) * 1.6, 0.15, canvas.pixel)
    first = first * edge(noise(canvas.rng, canvas.size, 5) + 0.9, 0.8)
    second = lines((canvas.x * np.cos(lean) + canvas.y * np.sin(lean)) * 1.6, 0.15, canvas.pixel)
    second = second * edge(noise(canvas.rng, canvas.size, 5) + 0.9, 0.8)
    return np.maximum(first, second)


def crystalline(canvas: Canvas) -> Floats:
    _, _, owner = voronoi(canvas, spacing=1.0, jitter=0.5)
    count = owner.max() + 1
    angle = canvas.rng.uniform(0.0, tau, count)[owner]  # one per Voronoi cell
    facet = integer_offset((canvas.x * np.cos(angle) + canvas.y * np.sin(angle)) * 0.6)
    tone = canvas.rng.random(count)[owner]
    return np.clip(tone * 0.6 + 0.2 + facet * 0.8, 0.0, 1.0)


def dotted(canvas: Canvas) -> Floats:
    radius = canvas.rng.uniform(0.13, 0.2)
    return canvas.ink(radius - np.hypot(integer_offset(canvas.x), integer_offset(canvas.y)))


def fibrous(canvas: Canvas) -> Floats:
    ink = np.zeros(canvas.x.shape)
    for strength in (1.0, 0.8, 0.6):
        lean = canvas.rng.uniform(-0.25, 0.25)
        wave = (canvas.x + lean * canvas.y) * canvas.rng.uniform(1.5, 2.6)
        wave = wave + 0.5 * noise(canvas.rng, canvas.size, 2.5)
        fibers = edge(np.sin(tau * wave) - 0.6, 0.7) * strength
        ink = np.maximum(ink, fibers * (0.6 + 0.4 * noise(canvas.rng, canvas.size, 4)))
    return np.clip(ink, 0.0, 1.0)


def flecked(canvas: Canvas) -> Floats:
    centers_x, centers_y = scatter(canvas, 0.9, 0.45)
    ink = np.zeros(canvas.x.shape)
    for x, y in zip(centers_x, centers_y, strict=True):
        angle = canvas.rng.uniform(0.0, tau)
        dx = canvas.x - x
        dy = canvas.y - y
        along = dx * np.cos(angle) + dy * np.sin(angle)
        across = dy * np.cos(angle) - dx * np.sin(angle)
        ink = np.maximum(ink, canvas.ink(0.32 - np.hypot(along, across * 3.2), 2.0))
    return ink


def freckled(canvas: Canvas) -> Floats:
    ink = spots(canvas, (0.06, 0.24), spacing=0.75, jitter=0.5, keep=0.75)
    return ink * (0.75 + 0.12 * noise(canvas.rng, canvas.size, 4))


def grid(canvas: Canvas) -> Floats:
    half_width = canvas.rng.uniform(0.06, 0.1)
    vertical = lines(canvas.x, half_width, canvas.pixel)
    horizontal = lines(canvas.y, half_width, canvas.pixel)
    return np.maximum(vertical, horizontal)


def grooved(canvas: Canvas) -> Floats:
    profile = np.abs(np.sin(np.pi * canvas.x)) ** 0.5
    return 0.6 * relief(canvas, 0.3 * profile, 1.0) + 0.4 * profile


def honeycombed(canvas: Canvas) -> Floats:
    # The centers of the hexagons form two grids of rectangles with sides 1 and sqrt(3). One grid is shifted
    # by half a rectangle.
    root = np.sqrt(3.0)
    distance = np.full(canvas.x.shape, 1e9)  # from the nearest center, and 0.5 at the edge of its hexagon
    for shift in (0.0, 0.5):
        dx = np.abs(integer_offset(canvas.x + shift))
        dy = np.abs(integer_offset(canvas.y / root + shift)) * root
        hexagonal = np.maximum(dx, 0.5 * dx + 0.5 * root * dy)
        distance = np.minimum(distance, hexagonal)
    inner_radius = canvas.rng.uniform(0.4, 0.44)
    return canvas.ink(distance - inner_radius)


def lined(canvas: Canvas) -> Floats:
    half_width = canvas.rng.uniform(0.06, 0.11)
    return lines(canvas.x + 0.12 * np.sin(canvas.x * 1.7), half_width, canvas.pixel)


def marbled(canvas: Canvas) -> Floats:
    flow = canvas.x * 0.35 + 0.55 * fractal(canvas.rng, canvas.size, 1.5, 4)
    veins = np.abs(np.sin(np.pi * flow)) ** 0.6
    clouds = edge(noise(canvas.rng, canvas.size, 3), 2.0)
    return 0.75 * veins + 0.25 * clouds


def pitted(canvas: Canvas) -> Floats:
    pits = spots(canvas, (0.1, 0.22), spacing=1.0, jitter=0.45, keep=0.8)
    return 0.75 * relief(canvas, -0.25 * pits, 0.7) + 0.25 * (1.0 - pits)


def polka_dotted(canvas: Canvas) -> Floats:
    radius = canvas.rng.uniform(0.27, 0.34)
    straight = np.hypot(integer_offset(canvas.x), integer_offset(canvas.y))
    staggered = np.hypot(integer_offset(canvas.x + 0.5), integer_offset(canvas.y + 0.5))
    return canvas.ink(radius - np.minimum(straight, staggered))


def porous(canvas: Canvas) -> Floats:
    pores = edge(0.75 - fractal(canvas.rng, canvas.size, canvas.tiles * 1.1, 2), 0.5)
    return pores * (0.9 + 0.1 * noise(canvas.rng, canvas.size, 4))


def scaly(canvas: Canvas) -> Floats:
    ink = np.zeros(canvas.x.shape)
    row = np.floor(canvas.y * 2.0)
    for offset in (2.0, 1.0, 0.0):  # later rows lie on top
        candidate_row = row + 1.0 - offset
        dx = integer_offset(canvas.x + 0.5 * (candidate_row % 2.0))
        dy = canvas.y - candidate_row * 0.5
        distance = np.hypot(dx, dy + 0.05)
        is_covered = (distance < 0.56) & (dy > -0.5)
        scale = 1.0 - canvas.ink(distance - 0.44, 3.0)
        ink = np.where(is_covered, scale, ink)
    return ink * (0.7 + 0.3 * (canvas.y * 2.0 - row))


def spiralled(canvas: Canvas) -> Floats:
    dx, dy = _from_center(canvas)
    num_arms = canvas.rng.integers(1, 3)
    direction = canvas.rng.choice((-1.0, 1.0))
    radius = np.hypot(dx, dy)
    angle = np.arctan2(dy, dx)
    return canvas.ink(np.sin(radius * tau * 0.8 + direction * num_arms * angle), 6.0)


def stratified(canvas: Canvas) -> Floats:
    height = canvas.y + 0.35 * fractal(canvas.rng, canvas.size, 1.5)
    return _layers(canvas, height, (0.15, 0.6), 2.5 * canvas.pixel)


def striped(canvas: Canvas) -> Floats:
    return canvas.ink(np.sin(tau * canvas.x * 0.7), 5.0)


def studded(canvas: Canvas) -> Floats:
    distance = np.hypot(integer_offset(canvas.x), integer_offset(canvas.y)) / 0.36
    dome = np.sqrt(np.clip(1.0 - distance**2, 0.0, 1.0))
    return 0.6 * relief(canvas, 0.5 * dome, 0.5) + 0.4 * canvas.ink(1.0 - distance, 3.0)


def veined(canvas: Canvas) -> Floats:
    main = edge(0.14 - np.abs(noise(canvas.rng, canvas.size, canvas.tiles * 0.3)), 0.15)
    fine = edge(0.13 - np.abs(noise(canvas.rng, canvas.size, canvas.tiles * 0.6)), 0.2)
    return np.maximum(main, 0.6 * fine)


def waffled(canvas: Canvas) -> Floats:
    inside = np.maximum(np.abs(integer_offset(canvas.x)), np.abs(integer_offset(canvas.y)))
    ridge = edge(inside - 0.33, 0.2)
    return 0.7 * relief(canvas, 0.35 * ridge, 0.8) + 0.3 * ridge


def woven(canvas: Canvas) -> Floats:
    over = np.sin(np.pi * canvas.x) * np.sin(np.pi * canvas.y) > 0.0
    across = np.where(over, integer_offset(canvas.x - 0.5), integer_offset(canvas.y - 0.5))
    along = np.where(over, integer_offset(canvas.y - 0.5), integer_offset(canvas.x - 0.5))
    thread = np.sqrt(np.clip(1.0 - (across / 0.46) ** 2, 0.0, 1.0))
    height = 0.55 + 0.45 * np.cos(np.pi * along)
    tone = np.where(over, 1.0, 0.65)
    return thread * height * tone


def wrinkled(canvas: Canvas) -> Floats:
    coarse = np.abs(noise(canvas.rng, canvas.size, canvas.tiles * 0.5, 1.8))
    fine = np.abs(noise(canvas.rng, canvas.size, canvas.tiles * 1.0, 1.8))
    return relief(canvas, -0.7 * (coarse + 0.5 * fine), 0.8)


def zigzagged(canvas: Canvas) -> Floats:
    zigzag = np.abs(integer_offset(canvas.y))
    return canvas.ink(np.sin(tau * (0.8 * canvas.x + zigzag)), 6.0)


def _draw(pattern: Pattern, rng: np.random.Generator, size: int) -> Pixels:
    low, high = pattern.tiles
    log_tiles = rng.uniform(np.log(low), np.log(high))
    tiles = float(np.exp(log_tiles))
    canvas = Canvas.pattern(rng, size, tiles, turn=pattern.turn, warp=pattern.warp)
    ink = pattern.draw(canvas)
    background, color = contrasting_colors(rng)
    image = blend(background, color, ink)
    return light_and_quantize(rng, image)


TEXTURES = RenderedSet(
    name="textures",
    template="a photo of a {}.",
    counts={"train": 32, "val": 20, "test": 50},
    draw=_draw,
    families={
        "linear": {
            "banded": Pattern(banded),
            "crosshatched": Pattern(crosshatched, (4.0, 7.0)),
            "fibrous": Pattern(fibrous),
            "grooved": Pattern(grooved),
            "lined": Pattern(lined),
            "stratified": Pattern(stratified, turn=0.4),
            "striped": Pattern(striped),
            "zigzagged": Pattern(zigzagged),
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
            "chequered": Pattern(chequered),
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
