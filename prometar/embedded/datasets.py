"""The embedded datasets, which are rendered."""

from collections.abc import Iterable
from typing import Any

from prometar.embedded.cells import CELLS
from prometar.embedded.rendered import RenderedSet
from prometar.embedded.textures import TEXTURES

EMBEDDED: dict[str, RenderedSet[Any]] = {dataset.name: dataset for dataset in (TEXTURES, CELLS)}
DEFAULT_DATASET = CELLS.name
"""Dataset of the demo. Training takes about a third as long as on `textures`."""


def resolve_backbone(
    datasets: Iterable[str], backbone: str | None, pretrained: str | None
) -> tuple[str, str | None]:
    """Fill in the backbone and weights that are None: `mini` if all datasets are embedded.

    Example:
        >>> resolve_backbone(["cells"], None, None), resolve_backbone(["cells", "dtd"], None, None)
        (('mini', None), ('ViT-B-16-quickgelu', 'openai'))
    """
    name = backbone or ("mini" if EMBEDDED.keys() >= set(datasets) else "ViT-B-16-quickgelu")
    return name, pretrained or (None if name == "mini" else "openai")
