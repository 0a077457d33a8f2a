"""The rendered datasets of this package, and the default backbone for a list of datasets."""

from collections.abc import Iterable
from typing import Any

from prometar.embedded.cells import CELLS
from prometar.embedded.charts import CHARTS
from prometar.embedded.rendered import RenderedSet
from prometar.embedded.textures import TEXTURES

RENDERED: dict[str, RenderedSet[Any]] = {dataset.name: dataset for dataset in (TEXTURES, CELLS, CHARTS)}
DEFAULT_DATASET = CELLS.name
"""Default dataset, because its runs take about a third as long as those on `textures`."""


def resolve_backbone(
    datasets: Iterable[str], backbone: str | None, pretrained: str | None
) -> tuple[str, str | None]:
    """Replace None with the defaults: `mini` if all datasets are rendered, otherwise OpenAI's ViT-B/16.

    Example:
        >>> resolve_backbone(["cells"], None, None), resolve_backbone(["cells", "dtd"], None, None)
        (('mini', None), ('ViT-B-16-quickgelu', 'openai'))
    """
    name = backbone or ("mini" if RENDERED.keys() >= set(datasets) else "ViT-B-16-quickgelu")
    return name, pretrained or (None if name == "mini" else "openai")
