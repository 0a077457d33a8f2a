"""Commands of `prometar data`: list, check, download and prepare datasets."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from shlex import quote
from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn
from rich.table import Table

from prometar.cli.console import TYPER_OPTIONS, RootOption, expand_home, expand_root
from prometar.data.datasets.benchmarks import BENCHMARKS
from prometar.data.datasets.catalog import default_root, reject_unused_root, title_of
from prometar.data.datasets.dataset import Dataset
from prometar.errors import WorkError, one_line
from prometar.io.stores import masked

app = typer.Typer(
    no_args_is_help=True, help="List, check and download datasets, or copy them to Parquet.", **TYPER_OPTIONS
)

NameArgument = Annotated[str, typer.Argument(help="Dataset name, as listed by `prometar data list`.")]


@app.command("list")
def data_list(
    data_root: Annotated[
        str | None,
        typer.Option(help="Data root. Without it, only the published sizes are shown.", callback=expand_root),
    ] = None,
) -> None:
    """List all known datasets. With --data-root, compare their sizes with the published ones."""
    from prometar.data.preparation.check import list_datasets

    last_column = "images" if data_root is None else "state"
    table = Table("name", "title", "classes", "train", "val", "test", last_column, box=None)
    notes: list[str] = []
    for name, opened in list_datasets(data_root).items():
        if isinstance(opened, str):  # the error of a dataset that cannot be opened
            entry = _Entry("unusable", remarks=[opened])
        elif opened is not None:
            entry = _opened_entry(name, opened)
        elif data_root is not None:
            entry = _Entry("missing")
        else:
            entry = _published_entry(name)
        sizes = [str(size) if size > 0 else "-" for size in entry.sizes]
        table.add_row(name, title_of(name), *sizes, entry.state)
        if entry.remarks:
            notes.append(f"{name}: {'; '.join(entry.remarks)}")

    Console(markup=False, emoji=False).print(table)
    if data_root is None:
        print("These are the published sizes. --data-root DIR shows the datasets in DIR.")
    else:
        print("`prometar data list` shows how to get missing datasets.")
    for note in notes:
        print(one_line(note))


class _Entry(NamedTuple):
    """Entry of a dataset in the list.

    Args:
        state: State in the data root, or how to get the images.
        sizes: Numbers of classes and of training, validation and test images. 0: none or unknown.
        remarks: Remarks for the user, below the table.
    """

    state: str
    sizes: Sequence[int] = (0, 0, 0, 0)
    remarks: Sequence[str] = ()


def _opened_entry(name: str, dataset: Dataset) -> _Entry:
    """Return the entry of a dataset that could be opened."""
    from prometar.data.preparation.check import size_differences
    from prometar.embedded.datasets import RENDERED

    differences = size_differences(name, len(dataset.classnames), dataset.counts)
    if name in RENDERED:
        state = "rendered"
    elif differences:
        state = "sizes differ"
    else:
        state = "complete"
    remarks = list(differences)
    if dataset.note:
        remarks.append(dataset.note)
    return _Entry(state, [len(dataset.classnames), *dataset.counts.values()], remarks)


def _published_entry(name: str) -> _Entry:
    """Return the entry of a dataset with its published sizes, and how to get it."""
    if name not in BENCHMARKS:
        return _Entry("your own")
    benchmark = BENCHMARKS[name]
    access = "download" if benchmark.copy_file else "manual"
    return _Entry(access, [benchmark.num_classes, *benchmark.sizes.values()])


@app.command("check")
def data_check(name: NameArgument, data_root: RootOption = None) -> None:
    """Decode every image. List missing and corrupt images, and compare sizes with the published ones."""
    from prometar.data.preparation.check import check

    if data_root:
        reject_unused_root([name])
    image_list_errors, unreadable, summary = check(name, data_root or default_root(name))
    for line in (*image_list_errors, *unreadable):
        print(one_line(line), file=sys.stderr)
    print("\n  ".join(map(one_line, summary)))
    if image_list_errors or unreadable:
        counts = f"image list errors: {len(image_list_errors)}, missing or corrupt images: {len(unreadable)}"
        raise WorkError(f"{name} is invalid ({counts}). Fix the problems listed above.")


@app.command("download")
def data_download(
    name: NameArgument,
    to: Annotated[
        str | None,
        typer.Option(help="Target folder. Default: $PROMETAR_DATA, or data.", callback=expand_home),
    ] = None,
) -> None:
    """Download the images and the split file of a benchmark. Rerun the command after an interruption."""
    from prometar.data.preparation.download import download

    to = to or default_root(name) or "data"
    with _progress_bar(DownloadColumn()) as progress:
        downloaded, problem = download(name, to, progress=progress, notify=_print_notice)
    for path in downloaded:
        print(f"Downloaded {path}")
    if problem:
        print(f"The dataset is not usable yet: {one_line(problem)}")
    else:
        print(f"Complete. To check every image, run `prometar data check {name} --data-root {quote(to)}`.")


def _print_notice(notice: str) -> None:
    print(one_line(notice), file=sys.stderr, flush=True)


@app.command("prepare")
def data_prepare(
    name: NameArgument,
    to: Annotated[
        str, typer.Option(help="Data root to write to: a folder, s3://... or gs://...", callback=expand_home)
    ],
    data_root: RootOption = None,
) -> None:
    """Check every image of a dataset, and write a Parquet copy. Rerun the same command to resume."""
    from prometar.data.preparation.prepare import prepare

    with _progress_bar(MofNCompleteColumn()) as progress:
        manifest, num_existing = prepare(name, data_root or default_root(name), to, progress=progress)
    num_images = sum(manifest.counts.values())
    print(f"{name}: {num_images} images in {len(manifest.shards)} shards ({num_existing} already existed)")
    print(f"To use the copy, pass --data-root {masked(to)}")


@contextmanager
def _progress_bar(counter: ProgressColumn) -> Iterator[Callable[[int, int], None]]:
    """Yield a function (done, total) that updates a progress bar on stderr, shown only in a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn(""), BarColumn(), counter)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)

        def update(done: int, total: int) -> None:
            known_total = total if total > 0 else None  # servers may not send the size of a download
            progress.update(task, completed=done, total=known_total)

        yield update
