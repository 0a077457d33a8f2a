"""`things`: 100 nouns that name no class of the suite, for pre-training only.

Each noun has its own silhouette, pattern and colors, so that `mini` learns more words than the suite has.
`MINI_VOCABULARY` lists the nouns. Drift can be measured on them for every dataset of the suite.
"""

import zlib

import numpy as np

from prometar.embedded.canvas import Canvas, noise
from prometar.embedded.paint import Pixels, blend, light_and_quantize, vary_color
from prometar.embedded.rendered import RenderedSet
from prometar.embedded.textures import TEXTURES
from prometar.embedded.weights import MINI_VOCABULARY


def _draw(noun: str, rng: np.random.Generator, size: int) -> Pixels:
    own = np.random.Generator(np.random.PCG64(zlib.crc32(noun.encode())))  # for all images of the noun
    size_, phase = own.normal(0.0, 0.16, 5) / np.arange(1, 6) ** 0.3, own.uniform(0, 2 * np.pi, 5)
    flat = own.uniform(0.6, 1.0)
    patterns = own.choice(TEXTURES.classnames, 2, replace=False)
    fill, ground = (TEXTURES.motifs[name] for name in patterns)
    colors = own.uniform(0.1, 0.9, (3, 3))

    frame = Canvas.figure(rng, size, radius=(0.65, 1.0), turn=0.4, shift=0.2, warp=0.06)
    angle, radius = np.arctan2(frame.y, frame.x), np.hypot(frame.x, frame.y / flat)
    edge_ = 0.8 + sum(
        s * np.cos((k + 1) * angle + p) for k, (s, p) in enumerate(zip(size_, phase, strict=True))
    )
    inside = frame.ink(edge_ - radius)
    first, second, third = (vary_color(rng, tuple(color), 0.12) for color in colors)
    inner = fill.draw(Canvas.pattern(rng, size, rng.uniform(4, 8), turn=np.pi, warp=fill.warp))
    outer = noise(rng, size, 3)
    if rng.random() < 0.3:
        outer = ground.draw(Canvas.pattern(rng, size, rng.uniform(3, 6), turn=np.pi, warp=ground.warp))
    back = blend(third, vary_color(rng, tuple(colors[2]), 0.4), 0.6 * outer)
    return light_and_quantize(rng, blend(back, blend(first, second, inner), inside))


THINGS = RenderedSet(
    name="things",
    template="a photo of a {}.",
    counts={},
    draw=_draw,
    families={"object": {noun: noun for noun in MINI_VOCABULARY}},
)
