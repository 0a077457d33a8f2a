"""Pre-training images of `mini`: other renderings of the classes of the suite, and 100 additional nouns.

The number of images per dataset and their colors determine how well `mini` knows a dataset.
"""

from dataclasses import dataclass
from itertools import chain
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
        named: Share of captions with the name of the class.
        mistaken: Share of captions with the name of a look-alike. The rest name the family.
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
    """Class of the pre-training images.

    Args:
        kind: Kind of the class's dataset.
        name: Class name.
        look_alike: Name of another class of the same family and of the same half of the class names. It is
            the class itself if there is no such class.
        family: Name of the family.
    """

    kind: Kind
    name: str
    look_alike: str
    family: str

    def picture(self, index: int) -> Pixels:
        """Render the image `index` of the class, with a seed that no split uses."""
        seed = FIRST_SEEDS["pretrain"] + index
        pixels = self.kind.rendered.render(self.name, seed)
        if self.kind.recolored:
            return recolor(pixels, seed)
        return pixels


def _classes_of(kind: Kind) -> list[WorldClass]:
    """Return the classes of a dataset in label order."""
    names = kind.rendered.classnames
    middle = len(names) // 2
    first_half = names[:middle]
    second_half = names[middle:]
    family_of: dict[str, str] = {}
    for family, members in kind.rendered.families.items():
        for name in members:
            family_of[name] = family
    classes = []
    for name in names:
        family = family_of[name]
        own_half = first_half if name in first_half else second_half
        candidates = [member for member in kind.rendered.families[family] if member in own_half]
        # The next candidate, and after the last one the first, so that each is the look-alike of one class.
        look_alike = candidates[(candidates.index(name) + 1) % len(candidates)]
        classes.append(WorldClass(kind, name, look_alike, family))
    return classes


CLASSES: tuple[WorldClass, ...] = tuple(chain.from_iterable(map(_classes_of, WORLD)))
"""Classes of all datasets. The label of an image is an index into them."""
_NAMES = {pictured.name for pictured in CLASSES}
_FAMILIES = {pictured.family for pictured in CLASSES}
WORDS: tuple[str, ...] = tuple(sorted(_NAMES | _FAMILIES))
"""Names of classes and families that captions use."""


def recolor(pixels: Pixels, seed: int) -> Pixels:
    """Return the image in other colors.

    Its color space is rotated or mirrored around mid-grey, scaled and shifted, at random by `seed`.
    """
    rng = np.random.Generator(np.random.PCG64([7, seed]))
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    contrast = rng.uniform(0.8, 1.2)
    shift = rng.uniform(-0.15, 0.15, 3)
    centered = pixels / 255.0 - 0.5
    return quantize(centered @ turn * contrast + 0.5 + shift)
