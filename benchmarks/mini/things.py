"""`things`: 100 nouns that name no class of `benchmarks/suite`, for pre-training only.

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
    """Draw the silhouette of a noun, filled with a pattern, in front of noise or of another pattern.

    Outline, patterns and mean colors depend only on the noun.
    """
    noun_rng = np.random.Generator(np.random.PCG64(zlib.crc32(noun.encode())))
    amplitudes = noun_rng.normal(0.0, 0.16, 5) / np.arange(1, 6) ** 0.3
    phases = noun_rng.uniform(0, 2 * np.pi, 5)
    height = noun_rng.uniform(0.6, 1.0)
    fill_name, ground_name = noun_rng.choice(TEXTURES.classnames, 2, replace=False)
    fill = TEXTURES.motifs[fill_name]
    ground = TEXTURES.motifs[ground_name]
    colors = noun_rng.uniform(0.1, 0.9, (3, 3))

    canvas = Canvas.figure(rng, size, radius=(0.65, 1.0), turn=0.4, shift=0.2, warp=0.06)
    angle = np.arctan2(canvas.y, canvas.x)
    radius = np.hypot(canvas.x, canvas.y / height)
    # The outline's radius is 0.8, plus a sum of waves around the middle.
    waves = [
        amplitude * np.cos(number * angle + phase)
        for number, (amplitude, phase) in enumerate(zip(amplitudes, phases, strict=True), start=1)
    ]
    outline = 0.8 + sum(waves)
    inside = canvas.ink(outline - radius)

    first = vary_color(rng, tuple(colors[0]), 0.12)
    second = vary_color(rng, tuple(colors[1]), 0.12)
    third = vary_color(rng, tuple(colors[2]), 0.12)
    inner = fill.draw(Canvas.pattern(rng, size, rng.uniform(4, 8), turn=np.pi, warp=fill.warp))
    outer = noise(rng, size, 3)
    if rng.random() < 0.3:
        outer = ground.draw(Canvas.pattern(rng, size, rng.uniform(3, 6), turn=np.pi, warp=ground.warp))
    background = blend(third, vary_color(rng, tuple(colors[2]), 0.4), 0.6 * outer)
    return light_and_quantize(rng, blend(background, blend(first, second, inner), inside))


THINGS = RenderedSet(
    name="things",
    template="a photo of a {}.",
    counts={},  # it has no splits, because its images are for pre-training only
    draw=_draw,
    families={"object": {noun: noun for noun in MINI_VOCABULARY}},
)
