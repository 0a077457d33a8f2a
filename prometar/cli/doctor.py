"""`prometar doctor`: what a study would find here."""

from pathlib import Path
from typing import Annotated

import typer

from prometar.cli.console import printable
from prometar.cli.options import RootOption
from prometar.config.settings import absolute_root
from prometar.distributed.local_ray import configure_ray
from prometar.errors import WorkError


def doctor(
    dataset: Annotated[list[str] | None, typer.Option(help="Data sets of the study [textures].")] = None,
    data_root: RootOption = None,
    backbone: Annotated[
        str | None, typer.Option(help="The study's backbone [mini embedded, else ViT-B-16-quickgelu].")
    ] = None,
    pretrained: Annotated[str | None, typer.Option(help="A tag or a file of weights [openai].")] = None,
    out: Annotated[Path, typer.Option(help="Where studies would lie.")] = Path("out"),
    address: Annotated[str | None, typer.Option(help="A running Ray cluster.")] = None,
) -> None:
    """What a study would find here, a line each. Exit status 1 where it would be refused."""
    configure_ray(local=address is None)
    from prometar.bundled.suite import default_backbone
    from prometar.data.datasets.catalog import require_different
    from prometar.doctor import Status, examine

    names = tuple(dataset or ["textures"])
    require_different(names)
    root = absolute_root(data_root) if data_root else None
    refused = 0
    for finding in examine(names, root, *default_backbone(names, backbone, pretrained), out, address):
        print(printable(str(finding)), flush=True)
        refused += finding.status is Status.REFUSED
    if refused:
        raise WorkError(f"a study would be refused here for {refused} of these")
