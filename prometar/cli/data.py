"""`prometar data`: list, check, download and prepare datasets."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from shlex import quote
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, ProgressColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from prometar.cli.console import PLAIN, RootOption, at_home
from prometar.data.datasets.benchmarks import BENCHMARKS
from prometar.data.datasets.catalog import default_root
from prometar.errors import WorkError, one_line
from prometar.io.stores import masked

app = typer.Typer(
    no_args_is_help=True, help="List datasets, check them, get them, copy them as Parquet.", **PLAIN
)

NameArgument = Annotated[str, typer.Argument(help="A dataset. `prometar data list` shows them.")]


@app.command("list")
def data_list(data_root: RootOption = None) -> None:
    """The datasets, and what of them is there. Sizes are compared with the published ones."""
    from prometar.bundled.suite import SUITE
    from prometar.data.datasets.catalog import title_of
    from prometar.data.preparation.check import list_datasets, other_sizes

    table, remarks = Table(box=None), []
    for column in ("name", "title", "classes", "train", "val", "test", "state"):
        table.add_column(column)
    for name, found in list_datasets(data_root).items():
        row = BENCHMARKS.get(name)
        how = "your own" if row is None else "download" if row.archives else "by hand"
        sizes: tuple[int, ...] = (0, 0, 0, 0)
        state = how if data_root is None else f"missing ({how})"
        if isinstance(found, str):
            state = "not usable"
            remarks.append(f"{name}: {found}")
        elif found is not None:
            sizes = (len(found.classnames), *found.counts.values())
            others = other_sizes(name, sizes[0], found.counts)
            state = "rendered" if name in SUITE else "other sizes" if others else "complete"
            if others or found.note:
                remarks.append(f"{name}: {'; '.join(filter(None, (*others, found.note)))}")
        elif row and data_root is None:
            sizes = (row.classes, *row.sizes.values())
        table.add_row(name, title_of(name), *(str(size or "-") for size in sizes), state)
    Console(markup=False).print(table)
    if data_root is None:
        print("sizes are the published ones; --data-root DIR shows what is in DIR")
    for remark in remarks:
        print(one_line(remark))


@app.command("check")
def data_check(name: NameArgument, data_root: RootOption = None) -> None:
    """Decode every image, and list what is missing or broken.

    Sizes are compared with the published ones.
    """
    from prometar.data.preparation.check import check

    problems, broken, remarks = check(name, data_root or default_root(name))
    for line in (*problems, *broken):
        print(one_line(line), file=sys.stderr)
    print("\n  ".join(map(one_line, remarks)))
    wrong = [f"{len(broken)} images are missing or broken"] if broken else []
    wrong += [f"{len(problems)} entries of the list are wrong"] if problems else []
    if wrong:
        raise WorkError(f"{name}: {' and '.join(wrong)}: fix what is listed above")


@app.command("download")
def data_download(
    name: NameArgument,
    to: Annotated[
        str | None,
        typer.Option(help="The data root [PROMETAR_DATA, or data].", callback=at_home),
    ] = None,
) -> None:
    """Download a benchmark's images and split. Rerun the same command to resume."""
    from prometar.data.preparation.download import download

    to = to or default_root(name) or "data"
    with _bar(DownloadColumn()) as progress:
        placed, missing = download(name, to, progress=progress)
    for path in placed:
        print(f"placed: {path}")
    if missing:
        print(f"still to get by hand: {missing}")
    else:
        print(f"complete; check every image with `prometar data check {name} --data-root {quote(to)}`")


@app.command("prepare")
def data_prepare(
    name: NameArgument,
    to: Annotated[
        str,
        typer.Option(help="A data root to write to: a folder, s3://... or gs://...", callback=at_home),
    ],
    data_root: RootOption = None,
) -> None:
    """Write a dataset as Parquet shards, after checking every image. Rerun the same command to resume."""
    from prometar.data.preparation.prepare import prepare

    with _bar(MofNCompleteColumn()) as progress:
        manifest, kept = prepare(name, data_root or default_root(name), to, progress=progress)
    images = sum(manifest.counts.values())
    print(f"{name}: {images} images in {len(manifest.shards)} shards, of which {kept} existed")
    print(f"use it with --data-root {masked(to)}")


@contextmanager
def _bar(numbers: ProgressColumn) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, drawn on a terminal only."""
    console = Console(stderr=True)
    with Bar(TextColumn(""), BarColumn(), numbers, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total or None)
