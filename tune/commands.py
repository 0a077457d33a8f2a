"""Commands of studies for `prometar`, which finds them as entry points of the group `prometar.commands`."""

from pathlib import Path
from typing import Annotated

import typer

from prometar.errors import UserError


def report(
    study: Annotated[Path | None, typer.Argument(help="A study's folder, OUT/STUDY.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Two studies' folders, to be put side by side.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="With --compare: the file to write [compare.html].")] = None,
) -> None:
    """Rebuild a study's report from records, or compare two studies."""
    if (study is None) == (compare is None):
        raise UserError("report takes a study's folder, or --compare with two of them")
    if study is not None:
        if to is not None:
            raise UserError("--to belongs to --compare: a study's report is written into its folder")
        from tune.reporting.html import build_report

        print(f"written: {build_report(study)}")
    if compare is not None:
        from rich.console import Console

        from tune.reporting.comparison import build_comparison, print_comparison

        path = to or Path("compare.html")
        print_comparison(Console(), build_comparison(*compare, path))
        print(f"written: {path}")
