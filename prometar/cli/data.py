"""`prometar data`: list, check, download and prepare datasets."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, ProgressColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from prometar.cli.console import printable
from prometar.cli.options import PLAIN, RootOption, at_home
from prometar.data.datasets.benchmarks import BENCHMARKS
from prometar.data.datasets.catalog import default_root
from prometar.errors import WorkError
from prometar.io.stores import masked

if TYPE_CHECKING:
    from prometar.data.preparation.check import Listed

app = typer.Typer(
    no_args_is_help=True, help="List datasets, check them, get them, copy them as Parquet.", **PLAIN
)

NameArgument = Annotated[str, typer.Argument(help="A dataset. `prometar data list` shows them.")]


@app.command("list")
def data_list(data_root: RootOption = None) -> None:
    """The datasets, and what of them is there. Sizes are compared with the published ones."""
    from prometar.data.preparation.check import list_datasets

    table = Table(box=None)
    for column in ("name", "title", "classes", "train", "val", "test", "state"):
        table.add_column(column)
    rows = list_datasets(data_root)
    for row in rows:
        table.add_row(row.name, row.title, *_sizes(row, data_root), _state(row, data_root))
    Console(markup=False).print(table)
    if data_root is None:
        print("sizes are the published ones; --data-root DIR shows what is in DIR")
        return
    if any(row.where for row in rows if row.name in BENCHMARKS):  # a data root is no tree of classes
        rows = tuple(row for row in rows if row.counts or row.name in BENCHMARKS)
    for row in rows:
        lines = [*row.differences, *filter(None, (row.problem, row.note))]
        if row.where and lines:
            print(printable(f"{row.name}: {'; '.join(lines)}"))


def _sizes(row: "Listed", root: str | None) -> tuple[str, ...]:
    """Classes and images a split: those found, or the published ones if nothing was looked at."""
    published = BENCHMARKS.get(row.name)
    numbers = (row.classes, *row.counts.values()) if row.counts else (0, 0, 0, 0)
    if root is None and published:
        numbers = (published.classes, *published.sizes)
    return tuple(str(number or "-") for number in numbers)


def _state(row: "Listed", root: str | None) -> str:
    published = BENCHMARKS.get(row.name)
    if row.counts:
        return "rendered" if row.where == "rendered" else "other sizes" if row.differences else "complete"
    if row.where:
        return "not usable"
    how = "your own" if published is None else "download" if published.archives else "by hand"
    return how if root is None else f"missing ({how})"


@app.command("check")
def data_check(
    name: NameArgument,
    data_root: RootOption = None,
) -> None:
    """Decode every image, and list what is missing or broken.

    Also what is listed twice, and where sizes are other than the published ones.
    """
    from prometar.data.preparation.check import check

    found = check(name, data_root or default_root(name))
    for line in (*found.problems, *(broken.message for broken in found.broken)):
        print(printable(line), file=sys.stderr)
    print(printable(str(found)))
    for note in found.notes:
        print(f"  {printable(note)}")
    wrong = [f"{len(found.broken)} images are missing or broken"] if found.broken else []
    wrong += [f"{len(found.problems)} entries of the list are wrong"] if found.problems else []
    if wrong:
        raise WorkError(f"{name}: {' and '.join(wrong)}: mend what is listed above")


@app.command("download")
def data_download(
    name: NameArgument,
    to: Annotated[
        str | None,
        typer.Option(help="The data root [PROMETAR_DATA, or data].", callback=at_home),
    ] = None,
    split: Annotated[
        str, typer.Option(help="coop, as the field uses; or official, the dataset's own (dtd, food101).")
    ] = "coop",
    mirror: Annotated[
        str | None,
        typer.Option(help="URL of another folder with the split file."),
    ] = None,
) -> None:
    """Download a benchmark's images and split. Rerun the same command to resume."""
    from prometar.data.preparation.download import download

    to = to or default_root(name) or "data"
    with _bar(DownloadColumn()) as progress:
        result = download(name, to, split=split, mirror=mirror, progress=progress)
    for key in result.placed:
        print(f"placed: {result.folder / key}")
    for key in result.kept:
        print(f"there already: {result.folder / key}")
    if result.note:
        print(printable(result.note))
    for line in result.missing:
        print(f"still to get by hand: {line}")
    if result.missing:
        return
    print(f"complete; look at every image with `prometar data check {quote(name)} --data-root {quote(to)}`")


@app.command("prepare")
def data_prepare(
    name: NameArgument,
    to: Annotated[
        str,
        typer.Option(help="A data root to write to: a folder, s3://... or gs://...", callback=at_home),
    ],
    data_root: RootOption = None,
) -> None:
    """Write a dataset as Parquet shards, after checking every image. The same command goes on."""
    from prometar.data.preparation.prepare import prepare

    with _bar(MofNCompleteColumn()) as progress:
        result = prepare(name, data_root or default_root(name), to, progress=progress)
    print(result)
    print(f"use it with --data-root {masked(to)}")


@contextmanager
def _bar(numbers: ProgressColumn) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, drawn on a terminal only."""
    console = Console(stderr=True)
    with Bar(TextColumn(""), BarColumn(), numbers, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)
