"""`prometar alignment`: how support and query gradients agreed along runs."""

from pathlib import Path
from typing import Annotated

import typer


def alignment(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs trained with `prometar train --alignment-every N`.")
    ],
    to: Annotated[Path | None, typer.Option(help="Write a plot of all runs to this HTML file.")] = None,
) -> None:
    """Show how gradients align along runs.

    Their figure is the cosine of support and query gradients, measured as the runs trained.
    """
    from prometar.analysis.alignment import FILE, read, summarize
    from prometar.analysis.plot import page
    from prometar.io.files import write_atomically

    records = {str(run): read(run / FILE) for run in runs}
    for name, found in records.items():
        print(f"{name}: {summarize(found) or 'no batch held two classes'}")
    if to is not None:
        write_atomically(to, page(records).encode())
        print(f"written: {to}")
