"""Look at data sets without changing anything: which are there, and which images are broken."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from prometar.data.catalog import BENCHMARKS, TEXTURES, TEXTURES_TITLE, open_dataset
from prometar.data.dataset import Dataset, Item, Source
from prometar.data.sources import join
from prometar.data.transforms import decode
from prometar.errors import UserError, WorkError

READ_AT_ONCE = 16  # images


@dataclass(frozen=True)
class Listed:
    """A row of `prometar data list`.

    Attributes:
        name, title: As in the catalog.
        where: Its folder, URI, or "rendered".
        counts: Images a split; empty if it cannot be opened.
        classes: Number of classes; 0 if it cannot be opened.
        problem: Why it cannot be opened; empty if it can.
    """

    name: str
    title: str
    where: str
    counts: dict[str, int]
    classes: int
    problem: str = ""


@dataclass(frozen=True)
class Broken:
    """An image that is missing or cannot be decoded, and the line that says so."""

    path: str
    message: str


@dataclass(frozen=True)
class CheckResult:
    """What `check` found: `counts` images a split, all decoded but those in `broken`."""

    name: str
    counts: dict[str, int]
    classes: int
    broken: tuple[Broken, ...]

    def __str__(self) -> str:
        splits = ", ".join(f"{split} {count}" for split, count in self.counts.items())
        state = f"{len(self.broken)} broken" if self.broken else "all whole"
        return f"{self.name}: {self.classes} classes, {splits} images, {state}"

    def require_whole(self) -> None:
        """Nothing if no image is broken.

        Raises:
            WorkError: naming every broken image.
        """
        if self.broken:
            total = sum(self.counts.values())
            names = "; ".join(one.message for one in self.broken)
            raise WorkError(f"{len(self.broken)} of {total} images of {self.name} are broken: {names}")


def list_datasets(root: Path | str | None = None) -> tuple[Listed, ...]:
    """Every data set of the catalog, with what `root` holds of it; never raises for one that is missing."""
    rows = [(row.name, row.title, row.folder) for row in BENCHMARKS.values()]
    return tuple(_listed(*row, root) for row in (*rows, (TEXTURES, TEXTURES_TITLE, TEXTURES)))


def _listed(name: str, title: str, folder: str, root: Path | str | None) -> Listed:
    where = "rendered" if name == TEXTURES else join(root, folder) if root is not None else ""
    try:
        dataset = open_dataset(name, None if name == TEXTURES else root)
    except UserError as error:
        return Listed(name, title, where, {}, 0, str(error))
    return Listed(name, title, where, counts_of(dataset), len(dataset.classnames))


def counts_of(dataset: Dataset) -> dict[str, int]:
    """Images a split."""
    return {split: len(items) for split, items in dataset.splits.items()}


def check(name: str, root: Path | str | None = None, *, threads: int | None = None) -> CheckResult:
    """Decode every image of a data set.

    Args:
        name, root: As for `open_dataset`.
        threads: Images decoded at a time (default: the CPUs of the machine).

    Raises:
        UserError: the data set cannot be opened. Broken images are in the result, not raised.
    """
    dataset = open_dataset(name, root)
    items = [item for split in dataset.splits.values() for item in split]
    broken = tuple(find_broken(items, dataset.source, threads=threads))
    return CheckResult(name, counts_of(dataset), len(dataset.classnames), broken)


def find_broken(items: Sequence[Item], source: Source, *, threads: int | None = None) -> Iterator[Broken]:
    """The missing and undecodable among `items`, in their order."""
    groups = [items[k : k + READ_AT_ONCE] for k in range(0, len(items), READ_AT_ONCE)]
    workers = threads or os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        waiting = iter(groups)
        # a few groups at a time: `map` would read the whole data set ahead of a slow consumer
        while batch := list(islice(waiting, workers * 4)):
            for found in pool.map(lambda group: _check_group(group, source), batch):
                yield from found


def _check_group(items: Sequence[Item], source: Source) -> list[Broken]:
    found = []
    try:
        files = source.read_many([item.path for item in items])
    except UserError:
        if len(items) == 1:
            return [_broken(items[0], source)]
        return [one for item in items for one in _check_group([item], source)]
    for item, file in zip(items, files, strict=True):
        try:
            decode(file, item.path)
        except UserError as error:
            found.append(Broken(item.path, str(error)))
    return found


def _broken(item: Item, source: Source) -> Broken:
    try:
        source.read_many([item.path])
    except UserError as error:
        return Broken(item.path, str(error))
    return Broken(item.path, f"image {item.path} was unreadable at first: try again")
