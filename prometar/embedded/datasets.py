"""The rendered datasets of this package, and the default backbone for a list of datasets."""

from collections.abc import Iterable
from typing import Any

from prometar.embedded.cells import CELLS
from prometar.embedded.charts import CHARTS
from prometar.embedded.rendered import RenderedSet
from prometar.embedded.textures import TEXTURES

RENDERED: dict[str, RenderedSet[Any]] = {
    TEXTURES.name: TEXTURES,
    CELLS.name: CELLS,
    CHARTS.name: CHARTS,
}
"""Rendered datasets by name."""
DEFAULT_DATASET = CELLS.name
"""Default dataset, because its runs take about a third as long as those on `textures`."""


def resolve_backbone(
    datasets: Iterable[str], backbone: str | None, pretrained: str | None
) -> tuple[str, str | None]:
    """Return the names of the backbone and of its pretrained weights, with defaults in place of None.

    The default backbone is `mini` if all `datasets` are rendered, and otherwise OpenAI's ViT-B/16. `mini`
    needs no name of weights.

    Example:
        >>> resolve_backbone(["cells"], None, None), resolve_backbone(["cells", "dtd"], None, None)
        (('mini', None), ('ViT-B-16-quickgelu', 'openai'))
    """
    if not backbone:
        are_rendered = all(dataset in RENDERED for dataset in datasets)
        backbone = "mini" if are_rendered else "ViT-B-16-quickgelu"
    if not pretrained:
        pretrained = None if backbone == "mini" else "openai"
    return backbone, pretrained
