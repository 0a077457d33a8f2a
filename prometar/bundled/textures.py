"""`textures`: 32 texture classes named in words, near to what `mini` has seen.

Both halves hold look-alikes (dotted, freckled and flecked, cracked and cobwebbed; lined, striped and
stratified, woven and waffled).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from prometar.bundled.canvas import make_canvas
from prometar.bundled.dataset import RenderedSet
from prometar.bundled.paint import Pixels, two_tone
from prometar.bundled.patterns import PATTERNS, Pattern


def _draw(pattern: Pattern, rng: np.random.Generator, size: int) -> Pixels:
    low, high = pattern.scale
    across = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    canvas = make_canvas(rng, size, across, turn=pattern.turn, warp=pattern.warp)
    return two_tone(rng, pattern.draw(canvas))


TEXTURES = RenderedSet(
    name="textures",
    template="a photo of a {}.",
    purpose="development",
    drawings={name: partial(_draw, pattern) for name, pattern in PATTERNS.items()},
    counts={"train": 32, "val": 20, "test": 50},
    families={
        "linear": (
            "banded", "crosshatched", "fibrous", "grooved", "lined", "stratified", "striped", "zigzagged",
        ),
        "spotted": (
            "blotchy", "dotted", "flecked", "freckled", "pitted", "polka-dotted", "porous", "studded",
        ),
        "netted": ("cobwebbed", "cracked", "crystalline", "honeycombed", "scaly", "veined"),
        "regular": ("braided", "chequered", "grid", "waffled", "woven"),
        "uneven": ("bubbly", "bumpy", "marbled", "spiralled", "wrinkled"),
    },
    salted=False,
)  # fmt: skip
