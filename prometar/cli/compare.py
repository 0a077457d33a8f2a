"""`prometar compare`: paired comparison of methods."""

from pathlib import Path
from typing import Annotated

import typer


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or folders that contain some.")],
    to: Annotated[str | None, typer.Option(help="Reference method [prometar, or the first].")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the table to this CSV file.")] = None,
) -> None:
    """Compare methods on shared datasets and seeds."""
    from rich.console import Console

    from prometar.comparison.render import as_csv, print_comparison
    from prometar.comparison.runs import compare_runs
    from prometar.io.files import write_atomically

    comparison = compare_runs(runs, to=to)
    print_comparison(comparison, Console(highlight=False, soft_wrap=True, markup=False))
    if csv is not None:
        write_atomically(csv, as_csv(comparison).encode())
        print(f"written: {csv}")
