"""Pre-training images of `mini`: other renderings of the classes of the suite, and 100 additional nouns.

The number of images per dataset and their colors determine how well `mini` knows a dataset.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from suite import SETS
from suite.flags import WILD as FLAGS
from suite.leaves import WILD as LEAVES
from suite.shapes import WILD as SHAPES
from suite.sketches import WILD as SKETCHES

from prometar.embedded.paint import Pixels, quantize
from prometar.embedded.rendered import FIRST_SEEDS, RenderedSet

from .things import THINGS


@dataclass(frozen=True)
class Kind:
    """A dataset's share in pre-training.

    Args:
        rendered: The dataset, with harder renderings if they exist.
        images: Images per class.
        recolored: True if the colors differ from those of the dataset.
        named, mistaken: Shares of captions with the class name, and with a look-alike's.
    """

    rendered: RenderedSet[Any]
    images: int
    recolored: bool = True
    named: float = 0.03
    mistaken: float = 0.02


WORLD: tuple[Kind, ...] = (
    Kind(SETS["textures"], 250, recolored=False),
    Kind(SHAPES, 200, recolored=False, named=0.12, mistaken=0.03),
    Kind(FLAGS, 150),
    Kind(SETS["fabrics"], 150),
    Kind(SETS["plots"], 100, named=0.05, mistaken=0.03),
    Kind(LEAVES, 100, named=0.15, mistaken=0.04),
    Kind(SETS["cells"], 60),
    Kind(SETS["terrain"], 60),
    Kind(SKETCHES, 80, named=0.15, mistaken=0.03),
    Kind(THINGS, 80, recolored=False, named=0.5, mistaken=0.0),
)


@dataclass(frozen=True)
class WorldClass:
    """Class of the pre-training images: its kind, its name, a look-alike of the same half, and its family."""

    kind: Kind
    name: str
    look_alike: str
    family: str

    def picture(self, index: int) -> Pixels:
        """Render the image `index` of the class, with a seed that no split uses."""
        seed = FIRST_SEEDS["pretrain"] + index
        pixels = self.kind.rendered.render(self.name, seed)
        return recolor(pixels, seed) if self.kind.recolored else pixels


def _class(kind: Kind, name: str) -> WorldClass:
    names = kind.rendered.classnames
    half = len(names) // 2
    family, members = next(pair for pair in kind.rendered.families.items() if name in pair[1])
    mine = names.index(name) < half
    rest = [other for other in members if (names.index(other) < half) == mine]
    return WorldClass(kind, name, rest[(rest.index(name) + 1) % len(rest)], family)


CLASSES: tuple[WorldClass, ...] = tuple(
    _class(kind, name) for kind in WORLD for name in kind.rendered.classnames
)
WORDS: tuple[str, ...] = tuple(sorted({word for c in CLASSES for word in (c.name, c.family)}))


def recolor(pixels: Pixels, seed: int) -> Pixels:
    """Return the image in other colors: its color space is randomly rotated or mirrored, and shifted."""
    rng = np.random.Generator(np.random.PCG64([7, seed]))
    turned, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    return quantize(
        (pixels / 255.0 - 0.5) @ turned * rng.uniform(0.8, 1.2) + 0.5 + rng.uniform(-0.15, 0.15, 3)
    )
