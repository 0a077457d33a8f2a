"""`prometar export`: a run's prompts as one file."""

from pathlib import Path
from typing import Annotated

import typer

from prometar.cli.options import TrustOption


def export(
    run: Annotated[Path, typer.Argument(help="A folder that `prometar train` or `reproduce` wrote.")],
    to: Annotated[Path, typer.Option(help="FILE.safetensors. The card is written beside it as FILE.json.")],
    trust_parts: TrustOption = False,
) -> None:
    """Write a finished run's prompts to one file.

    `prometar.load(FILE).predict(images)` uses them.
    """
    from prometar.runs import export_run

    print(f"written: {to} and {export_run(run, to, trust_parts=trust_parts)}")
