"""Commands of studies for `prometar`, found through the entry points of the group `prometar.commands`."""

from pathlib import Path
from typing import Annotated

import typer


def report(study: Annotated[Path, typer.Argument(help="Folder of a study, OUT/STUDY.")]) -> None:
    """Write report.html from a study's records.

    Prints the summary too.
    """
    from rich.console import Console

    from tune.records.folder import read_records
    from tune.report.page import write_report
    from tune.report.terminal import print_summary

    records = read_records(study)
    write_report(records)
    print_summary(Console(highlight=False), records)
