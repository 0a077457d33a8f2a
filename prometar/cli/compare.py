"""`prometar compare`: runs of several methods, paired by data set and seed."""

from pathlib import Path
from typing import Annotated

import typer

from prometar.errors import UserError


def compare(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders that `prometar train` wrote, or folders that hold some.")
    ],
    to: Annotated[
        str | None, typer.Option(help="The method that the others are compared to [prometar, or the first].")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the tables to this CSV file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page to this HTML file.")] = None,
) -> None:
    """Compare methods on data sets and seeds that their runs share."""
    from rich.console import Console

    from prometar.comparison.page import KIND, page
    from prometar.comparison.render import CSV_HEAD, as_csv, print_comparison
    from prometar.comparison.runs import compare_runs
    from prometar.io.files import write_atomically
    from prometar.io.pages import require_page_target, require_target

    if csv is not None:
        require_target(csv, ",".join(CSV_HEAD), f"table of `prometar {KIND}`", option="--csv")
    if html is not None:
        require_page_target(html, KIND, option="--html")
    if csv is not None and csv == html:
        raise UserError(f"--csv and --html are both {csv}: name two files")
    found = compare_runs(runs, to=to)
    print_comparison(found, Console(highlight=False, soft_wrap=True, markup=False))
    for path, text_of in ((csv, as_csv), (html, page)):
        if path is not None:
            write_atomically(path, text_of(found).encode())
            print(f"written: {path}")
