"""`prometar data`: what is there, is it whole, get it, copy it as Parquet."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, ProgressColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from prometar.commands.options import PLAIN, RootOption
from prometar.errors import WorkError

if TYPE_CHECKING:
    from prometar.data.check import Listed

app = typer.Typer(
    no_args_is_help=True, help="Data sets: what is there, is it whole, get it, copy it as Parquet.", **PLAIN
)

NameArgument = Annotated[str, typer.Argument(help="A data set; `prometar data list` shows them.")]


@app.command("list")
def data_list(data_root: RootOption = None) -> None:
    """The data sets: what lies under --data-root, and how it compares with the published sizes."""
    from prometar.data.check import list_datasets

    table = Table(box=None)
    for column in ("name", "title", "classes", "train", "val", "test", "state"):
        table.add_column(column, no_wrap=column != "state")
    rows = list_datasets(data_root)
    for row in rows:
        table.add_row(row.name, row.title, *_sizes(row), _state(row))
    Console(markup=False).print(table)
    if data_root is None:
        print("sizes are the published ones; --data-root DIR shows what is in DIR")
        return
    for row in rows:
        lines = (*row.differences, *filter(None, (row.problem, row.note)))
        if lines:
            print(f"{row.name}: {'; '.join(lines)}")


def _sizes(row: Listed) -> tuple[str, ...]:
    """Classes and images a split: those found, or the published ones."""
    from prometar.data.benchmarks import BENCHMARKS

    if row.counts:
        numbers = (row.classes, *row.counts.values())
    elif row.name in BENCHMARKS and not row.where:
        numbers = (BENCHMARKS[row.name].classes, *BENCHMARKS[row.name].sizes)
    else:
        numbers = (0, 0, 0, 0)
    return tuple(str(number or "-") for number in numbers)


def _state(row: Listed) -> str:
    from prometar.data.benchmarks import BENCHMARKS

    published = BENCHMARKS.get(row.name)
    if row.where == "rendered":
        return "rendered"
    if row.problem and row.where:
        return "not usable"
    if row.problem:
        return "your own" if published is None else "download" if published.archives else "by hand"
    return "other sizes" if row.differences else "complete" if published else "there"


@app.command("check")
def data_check(name: NameArgument, data_root: RootOption = None) -> None:
    """Decode every image; lists all that are missing, broken or listed twice, and the sizes published."""
    from prometar.data.check import check

    found = check(name, data_root)
    for line in (*found.problems, *(broken.message for broken in found.broken)):
        print(line, file=sys.stderr)
    print(found)
    for note in found.notes:
        print(f"  {note}")
    wrong = [f"{len(found.broken)} images are missing or broken"] if found.broken else []
    wrong += [f"{len(found.problems)} entries of the list are wrong"] if found.problems else []
    if wrong:
        raise WorkError(f"{name}: {' and '.join(wrong)}: mend what is listed above")


@app.command("download")
def data_download(
    name: NameArgument,
    to: Annotated[str, typer.Option(help="The data root: the folder that holds the data sets' folders.")],
) -> None:
    """Get a benchmark's images from their public source. The same command goes on."""
    from prometar.data.download import download

    with _bar(DownloadColumn()) as progress:
        result = download(name, to, progress=progress)
    for key in result.placed:
        print(f"placed: {result.folder / key}")
    for key in result.kept:
        print(f"there already: {result.folder / key}")
    for line in result.missing:
        print(f"still to get by hand: {line}")
    if not result.missing:
        print(f"complete; look at every image with `prometar data check {name} --data-root {to}`")


@app.command("prepare")
def data_prepare(
    name: NameArgument,
    to: Annotated[str, typer.Option(help="A data root to write to: a folder, s3://... or gs://...")],
    data_root: RootOption = None,
) -> None:
    """Write a data set as Parquet shards, after checking every image. The same command goes on."""
    from prometar.data.prepare import prepare

    with _bar(MofNCompleteColumn()) as progress:
        result = prepare(name, data_root, to, progress=progress)
    print(result)
    print(f"use it with --data-root {to}")


@contextmanager
def _bar(numbers: ProgressColumn) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, drawn on a terminal only."""
    console = Console(stderr=True)
    with Bar(TextColumn(""), BarColumn(), numbers, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)
