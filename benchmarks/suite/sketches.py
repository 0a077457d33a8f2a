"""`sketches`: pencil drawings of 48 things, some fine-grained. Many classes with few images."""

from dataclasses import replace
from functools import cache, partial
from itertools import pairwise

import numpy as np

from prometar.embedded.canvas import Canvas, Floats, MakeCanvas, noise, segment_distance
from prometar.embedded.paint import Pixels, blend, quantize, vary_color
from prometar.embedded.rendered import RenderedSet

STROKES: dict[str, dict[str, str]] = {
    "animal": {
        "bird": "o 6 7 2.5|3.5 7 1.5 8 4 8.5|8 9 16 11 19 9 15 15 9 15 6 9.5|10 15 10 18|12 15 12 18",
        "butterfly": "10 5 10 16|10 9 4 3 2 8 10 11|10 9 16 3 18 8 10 11|10 11 4 17 10 14|10 11 16 17 10 14",
        "cat": "5 9 5 3 8 6 12 6 15 3 15 9 13 14 7 14 5 9|o 8 9 0.7|o 12 9 0.7|2 10 7 11|18 10 13 11",
        "fish": "a 9 16 10 225 315|a 9 4 10 45 135|16 9 19 6 19 14 16 11|o 5 9 0.7",
        "rabbit": "o 10 13 4.5|8 9 6 2 9 3 9.5 8.5|10.5 8.5 12 2 14 3 12 9|o 8.5 12 0.5|o 11.5 12 0.5",
        "snail": "o 12 10 5|o 12 10 2.5|2 16 18 16 16 13|4 16 3 10 5 6|3 10 1 6",
    },
    "tool": {
        "anchor": "10 5 10 17|6 8 14 8|o 10 3.5 1.5|a 10 11 6 20 160",
        "axe": "7 3 7 18|7 4 13 3 15 7 13 10 7 9",
        "fork": "10 9 10 19|6 2 6 7 8 9 12 9 14 7 14 2|10 2 10 9",
        "hammer": "9 8 9 19 11 19 11 8|4 3 15 3 17 6 15 8 4 8 4 3",
        "key": "o 5 10 3.5|8.5 10 18 10 18 13|15 10 15 13",
        "knife": "4 18 9 11|9 11 16 2 17 7 11 13 9 11",
        "ladder": "6 2 6 18|14 2 14 18|6 5 14 5|6 9 14 9|6 13 14 13|6 16 14 16",
        "scissors": "o 6 16 2.3|o 14 16 2.3|7 14 14 2|13 14 6 2",
        "spoon": "o 10 5 3.3|10 8.5 10 19",
        "sword": "10 1 8.7 3 8.7 14|10 1 11.3 3 11.3 14|6 14 14 14|10 14 10 19",
    },
    "vehicle": {
        "balloon": "o 10 7 5|10 12 9 15 11 17 10 19",
        "boat": "2 13 18 13 15 17 5 17 2 13|10 13 10 3|10 3 16 11 10 11",
        "car": "2 14 2 11 5 10 7 6 13 6 16 10 18 11 18 14 2 14|o 6 15 2|o 14 15 2|7 10 13 10",
        "kite": "10 2 16 8 10 14 4 8 10 2|10 2 10 14|4 8 16 8|10 14 12 16 9 17 11 19",
        "rocket": "7 15 7 7 10 1 13 7 13 15 7 15|7 11 4 17 7 15|13 11 16 17 13 15|o 10 8 1.3",
        "wheel": "o 10 10 8|o 10 10 1.5|10 2 10 18|2 10 18 10|4.3 4.3 15.7 15.7|15.7 4.3 4.3 15.7",
    },
    "plant": {
        "cactus": "8 18 8 5 10 3 12 5 12 18|8 12 4 12 4 8|12 10 16 10 16 6|5 18 15 18",
        "mushroom": "a 10 10 7 180 360|3 10 17 10|8 10 8 18 12 18 12 10",
        "tree": "9 18 9 12|11 12 11 18|o 10 7 5.5",
    },
    "building": {
        "bridge": "1 13 19 13|a 10 13 6 180 360|4 13 4 17|16 13 16 17|7 13 7 9|13 13 13 9",
        "house": "3 10 10 3 17 10|5 9 5 18 15 18 15 9|8 18 8 13 12 13 12 18",
        "tent": "10 3 1 17 19 17 10 3|10 3 7 17|10 3 13 17",
        "windmill": "8 18 9 9 11 9 12 18 8 18|10 8 4 3|10 8 16 3|10 8 4 13|10 8 16 13",
    },
    "furniture": {
        "candle": "8 9 12 9 12 18 8 18 8 9|10 9 10 7|10 2 8 5 10 7 12 5 10 2",
        "chair": "6 2 6 18|6 10 14 10 14 18|6 3 8 3 8 10",
        "clock": "o 10 10 7.5|10 10 10 5|10 10 14 12",
        "lamp": "7 3 13 3 16 10 4 10 7 3|10 10 10 18|6 18 14 18",
        "table": "2 7 18 7 18 9 2 9 2 7|4 9 4 17|16 9 16 17",
    },
    "belonging": {
        "bell": "4 15 16 15 14 12 14 8 12 5 8 5 6 8 6 12 4 15|o 10 17 1.3",
        "book": "10 5 10 16|10 5 3 4 3 15 10 16|10 5 17 4 17 15 10 16",
        "bottle": "8 2 12 2 12 7 14 10 14 18 6 18 6 10 8 7 8 2|6 12 14 12",
        "crown": "3 16 3 6 7 11 10 4 13 11 17 6 17 16 3 16|3 13 17 13",
        "cup": "4 5 14 5 13 16 5 16 4 5|a 14 10 3.5 -80 80",
        "envelope": "2 5 18 5 18 15 2 15 2 5|2 5 10 11 18 5",
        "glasses": "o 5.5 10 3.5|o 14.5 10 3.5|9 10 11 10|2 9 1 6|18 9 19 6",
        "guitar": "o 7 14 4|o 10 10.5 2.8|11 9 18 2|16 2 18 4",
        "hat": "2 14 18 14|5 14 6 5 14 5 15 14|5.5 11 14.5 11",
        "umbrella": "a 10 10 8 180 360|2 10 18 10|10 10 10 17 8 18 7 16",
    },
    "weather": {
        "cloud": "a 6 12 3.5 90 270|a 9 8 4 180 320|a 14 9 3.5 250 400|a 15 12.5 3 -60 90|6 15.5 15 15.5",
        "lightning": "11 1 5 11 10 11 8 19 15 8 10 8 13 1 11 1",
        "mountain": "1 17 7 5 11 13 14 8 19 17 1 17|5 9 7 10 9 9",
        "sun": "o 10 10 4|10 1 10 4|10 16 10 19|1 10 4 10|16 10 19 10|3.5 3.5 5.7 5.7|14.3 14.3 16.5 16.5|"
        "16.5 3.5 14.3 5.7|5.7 14.3 3.5 16.5",
    },
}
"""Strokes of each thing by family, separated by |, on a grid of 20 by 20 with y downwards.

A stroke is a polyline "x y x y ...", a circle "o x y radius", or an arc "a x y radius from to". The angles of
an arc are in degrees, clockwise from the right.
"""


def _points(stroke: str) -> Floats:
    """Return the points (N, 2) of a stroke, in -1..1."""
    first, *rest = stroke.split()
    if first in ("o", "a"):
        x, y, radius, *degrees = map(float, rest)
        start, end = np.deg2rad(degrees or [0.0, 360.0])
        points_per_radian = min(1.8, 0.7 + 0.3 * radius)
        angle = np.linspace(start, end, 3 + round((end - start) * points_per_radian))
        points = np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1)
    else:
        points = np.array([float(first), *map(float, rest)]).reshape(-1, 2)
    return points / 10.0 - 1.0


@cache
def _segments(strokes: str) -> tuple[Floats, Floats]:
    """Return the starts (N, 2) and ends (N, 2) of all segments."""
    pairs = [ends for stroke in strokes.split("|") for ends in pairwise(_points(stroke))]
    return np.array([start for start, _ in pairs]), np.array([end for _, end in pairs])


_OWN = partial(Canvas.figure, radius=(0.85, 0.95), turn=0.06, shift=0.04, warp=0.02)
_WILD = partial(Canvas.figure, radius=(0.65, 0.9), turn=0.25, shift=0.12, warp=0.06)


def _draw(
    strokes: str, rng: np.random.Generator, size: int, *, make_canvas: MakeCanvas, clutter: float = 1.0
) -> Pixels:
    """Draw the strokes with a pencil of varying pressure. `clutter`: strength of the hand's shake."""
    canvas = make_canvas(rng, size)
    amplitudes = rng.normal(0.0, 0.045, (6, 2)) * clutter
    phases = amplitudes[:, 0] * 40.0
    waves = np.array([(2, 0), (0, 2), (4, 1), (1, 4), (5, 3), (3, 5)], dtype=np.float64)

    def shaken(points: Floats) -> Floats:
        # The shake is a function of position, so that segments that share a point stay connected.
        return points + np.sin(points @ waves.T + phases) @ amplitudes

    starts, ends = _segments(strokes)
    distance = segment_distance(canvas, shaken(starts), shaken(ends))
    width = rng.uniform(0.035, 0.09)
    pressure = np.clip(0.85 + 0.25 * noise(rng, size, 4), 0.3, 1.0)
    paper = vary_color(rng, (0.9, 0.88, 0.82), 0.1)
    pencil = vary_color(rng, (0.25, 0.25, 0.3), 0.2)
    image = blend(paper, pencil, canvas.ink(width - distance, 2.0) * pressure)
    light = 1.0 + 0.06 * noise(rng, size, 2)[:, :, None]
    return quantize(image * light + 0.04 * rng.standard_normal((size, size, 1)))


SKETCHES = RenderedSet(
    name="sketches",
    template="a sketch of a {}.",
    counts={"train": 20, "val": 10, "test": 30},
    draw=partial(_draw, make_canvas=_OWN, clutter=0.3),
    families=STROKES,
)
WILD = replace(SKETCHES, draw=partial(_draw, make_canvas=_WILD))
"""The harder renderings that `mini` was pre-trained on."""
