"""Commands of studies for `prometar`, which finds them as entry points of the group `prometar.commands`."""

from pathlib import Path
from typing import Annotated

import typer


def report(study: Annotated[Path, typer.Argument(help="A study's folder, OUT/STUDY.")]) -> None:
    """Rebuild a study's report from its records."""
    from tune.reporting.html import build_report

    print(f"written: {build_report(study)}")
