"""The embedded data set `textures`: 32 texture classes named in words, rendered on demand.

Items are addressed by a path, "<class>/<split>_<index>.png"; a path decides its pixels. Classes are in
alphabetical order: the first half is the base half, the rest the new one, and both hold look-alikes (dotted,
freckled and flecked, cracked and cobwebbed; lined, striped and stratified, woven and waffled).
"""

from __future__ import annotations

import io
import re
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prometar.bundled.canvas import Field, fractal, make_canvas
from prometar.bundled.patterns import PATTERNS
from prometar.errors import UserError

CLASSNAMES: tuple[str, ...] = tuple(sorted(PATTERNS))
COUNTS: dict[str, int] = {"train": 32, "val": 20, "test": 50}  # images a class
SIZE = 64  # pixels

# A split's images use seeds FIRST_SEED[split] + index. `pretrain` has no end, so it comes last.
FIRST_SEED: dict[str, int] = {"train": 0, "val": 100_000, "test": 200_000, "pretrain": 1_000_000}

_PATH = re.compile(r"(?P<name>[a-z-]+)/(?P<split>[a-z]+)_(?P<index>\d{4,6})\.png")


def _colours(rng: np.random.Generator) -> NDArray[np.float64]:
    """(2, 3) ground and ink colour in 0..1, at least 0.35 apart in mean brightness."""
    while True:
        pair = rng.uniform(0.05, 0.95, (2, 3))
        if abs(float(pair[0].mean() - pair[1].mean())) > 0.35:
            return pair


def _paint(rng: np.random.Generator, ink: Field) -> NDArray[np.uint8]:
    """(H, W, 3) pixels: ink in two colours, under uneven light, with grain."""
    size = ink.shape[0]
    ground, colour = _colours(rng)
    image = ground + np.clip(ink, 0.0, 1.0)[:, :, None] * (colour - ground)
    axis = np.linspace(-1.0, 1.0, size)
    tilt = rng.uniform(-0.2, 0.2, 2)
    light = rng.uniform(0.8, 1.1) + tilt[0] * axis[None, :] + tilt[1] * axis[:, None]
    light = light + 0.05 * fractal(rng, size, 3.0, 2)
    image = image * light[:, :, None] + rng.uniform(0.01, 0.05) * rng.standard_normal((size, size, 1))
    return np.clip(np.rint(image * 255.0), 0, 255).astype(np.uint8)


def render(classname: str, seed: int, size: int = SIZE) -> NDArray[np.uint8]:
    """Draw one image of a class; equal arguments give equal pixels.

    Args:
        classname: One of `CLASSNAMES`.
        seed: Decides colours, scale, rotation, lighting and the pattern's own randomness.
        size: Side in pixels (default 64).

    Returns:
        uint8 array (size, size, 3).

    Raises:
        UserError: unknown class.
    """
    pattern = PATTERNS.get(classname)
    if pattern is None:
        raise UserError(f"textures has no class {classname!r}; it has {', '.join(CLASSNAMES)}")
    # the name, not its position, enters the seed: a further class leaves the others as they are
    rng = np.random.Generator(np.random.PCG64([zlib.crc32(classname.encode()), seed]))
    low, high = pattern.scale
    across = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    canvas = make_canvas(rng, size, across, turn=pattern.turn, warp=pattern.warp)
    return _paint(rng, pattern.draw(canvas))


def item_path(classname: str, split: str, index: int) -> str:
    """The path of an item: item_path("grid", "train", 3) == "grid/train_0003.png"."""
    return f"{classname}/{split}_{index:04d}.png"


def paths(split: str) -> tuple[str, ...]:
    """Every path of a split ("train", "val", "test"), class by class."""
    if split not in COUNTS:
        raise UserError(f"textures has no split {split!r}; it has {', '.join(COUNTS)}")
    return tuple(item_path(name, split, index) for name in CLASSNAMES for index in range(COUNTS[split]))


def locate(path: str) -> tuple[str, int]:
    """The class and the seed behind a path.

    Raises:
        UserError: not a path of this data set.
    """
    match = _PATH.fullmatch(path)
    if match is None or match["name"] not in PATTERNS or match["split"] not in FIRST_SEED:
        raise UserError(f"textures has no image {path!r}; its paths look like 'grid/train_0003.png'")
    index = int(match["index"])
    if item_path(match["name"], match["split"], index) != path:
        raise UserError(f"textures has no image {path!r}; an index has leading zeros up to four digits only")
    if index >= COUNTS.get(match["split"], 1_000_000):
        raise UserError(
            f"textures has no image {path!r}; {match['split']} ends at {COUNTS[match['split']] - 1}"
        )
    return match["name"], FIRST_SEED[match["split"]] + index


def render_path(path: str, size: int = SIZE) -> NDArray[np.uint8]:
    """(size, size, 3) uint8 pixels of an item."""
    return render(*locate(path), size)


def encode(path: str) -> bytes:
    """An item as a PNG file; the bytes depend on the zlib in use, the pixels do not."""
    buffer = io.BytesIO()
    Image.fromarray(render_path(path)).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
