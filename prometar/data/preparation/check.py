"""Look at datasets without changing anything: which are there, and what is wrong with one."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from prometar.bundled.suite import SUITE
from prometar.data.datasets.benchmarks import BENCHMARKS
from prometar.data.datasets.catalog import (
    known,
    open_dataset,
    open_unverified,
    place_of,
    problems_of,
    title_of,
)
from prometar.data.datasets.dataset import Dataset, Item, Source, same_class
from prometar.data.datasets.layouts import SplitFile
from prometar.data.datasets.manifest import damaged_shards, find_manifest
from prometar.data.datasets.sources import ParquetSource
from prometar.data.preparation.http import digest_of
from prometar.data.streaming.transforms import decode
from prometar.environment import num_cpus
from prometar.errors import UserError
from prometar.io.stores import masked

READ_AT_ONCE = 16  # images
SHOWN_NAMES = 12


@dataclass(frozen=True)
class Listed:
    """A row of `prometar data list`.

    Attributes:
        name, title: As in the catalog.
        where: Its folder, URI, or "rendered"; empty if it is not there.
        counts: Images a split; empty if it cannot be opened.
        classes: Number of classes; 0 if it cannot be opened.
        problem: Why it cannot be opened; empty if it can.
        differences: See `differences`.
        note: The dataset's.
    """

    name: str
    title: str
    where: str
    counts: dict[str, int]
    classes: int
    problem: str = ""
    differences: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Seen:
    """An image that was looked at.

    Attributes:
        path: The item's.
        digest: Of what was read; empty where nothing could be.
        message: Why it is broken, missing or not to be decoded; empty if it is whole.
    """

    path: str
    digest: bytes
    message: str = ""


@dataclass(frozen=True)
class CheckResult:
    """Result of `check`.

    Attributes:
        name, classes: The dataset and its number of classes.
        counts: Images a split, all decoded but those in `broken`.
        broken: Images that are missing or cannot be decoded, with their messages.
        problems: What is wrong with the list: images listed twice, labels with two names, changed shards.
        notes: What is worth knowing: other sizes than published, equal class names, a split made here.
    """

    name: str
    counts: dict[str, int]
    classes: int
    broken: tuple[Seen, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        splits = ", ".join(f"{split} {count}" for split, count in self.counts.items())
        state = f"{len(self.broken)} broken" if self.broken else "all whole"
        return f"{self.name}: {self.classes} classes, {splits} images, {state}"


def list_datasets(root: Path | str | None = None) -> tuple[Listed, ...]:
    """Every dataset of the catalog, with what `root` holds of it; never raises for one that is missing.

    Raises:
        UserError: `root` itself is not there.
        WorkError: a store does not answer.
    """
    if root is not None and "://" in str(root):
        find_manifest(str(root))  # a store that does not answer is waited for once, not for each dataset
    elif root is not None and not Path(root).is_dir():
        raise UserError(f"data root {root} is not a folder: pass --data-root DIR")
    return tuple(_listed(name, root) for name in known())


def _listed(name: str, root: Path | str | None) -> Listed:
    title = title_of(name)
    where = "rendered" if name in SUITE else _where(name, root)
    try:
        dataset = open_dataset(name, None if name in SUITE else root)
    except UserError as error:
        return Listed(name, title, where, {}, 0, str(error))
    counts, classes = dataset.counts, len(dataset.classnames)
    others = differences(name, classes, counts)
    return Listed(name, title, where, counts, classes, differences=others, note=dataset.note)


def _where(name: str, root: Path | str | None) -> str:
    where = place_of(name, root) if root is not None else ""
    try:
        there = find_manifest(where) is not None if "://" in where else Path(where).is_dir()
    except UserError:
        return masked(where)  # something is there, or the store does not answer: opening it says what
    return masked(where) if there else ""


def differences(name: str, classes: int, counts: dict[str, int]) -> tuple[str, ...]:
    """Return differences from the published sizes of a benchmark, such as "train 600 of 2820"."""
    if name not in BENCHMARKS:
        return ()
    row = BENCHMARKS[name]
    pairs = {"classes": (classes, row.classes)}
    pairs |= {split: (counts[split], size) for split, size in row.sizes._asdict().items()}
    return tuple(f"{what} {found} of {want}" for what, (found, want) in pairs.items() if found != want)


def check(name: str, root: Path | str | None = None) -> CheckResult:
    """Look at the list, and decode every image of a dataset.

    Args:
        name, root: As for `open_dataset`.

    Raises:
        UserError: the dataset cannot be opened. Broken images and wrong lists are in the result, not raised.
    """
    dataset = open_unverified(name, root)
    items = list({item.path: item for item in dataset.items}.values())
    seen = list(look(items, dataset.source))
    classes = len({item.label for item in items})
    return CheckResult(
        name,
        dataset.counts,
        classes,
        tuple(one for one in seen if one.message),
        (*problems_of(dataset), *_damaged(dataset)),
        tuple(_notes(dataset, classes, _other_split(name, root))),
    )


def _other_split(name: str, root: Path | str | None) -> str:
    """Return a note if the split file in a benchmark's folder is not CoOp's."""
    row = BENCHMARKS.get(name)
    if row is None or row.split_sha256 is None or not isinstance(row.layout, SplitFile) or "://" in str(root):
        return ""
    file = Path(place_of(name, str(root)), row.layout.file)
    if not file.exists() or digest_of(file) == row.split_sha256:
        return ""
    return f"{file.name} is not CoOp's, byte for byte: figures may not compare with published ones"


def _damaged(dataset: Dataset) -> Iterator[str]:
    if isinstance(dataset.source, ParquetSource) and (manifest := find_manifest(dataset.source.uri)):
        yield from damaged_shards(dataset.source.uri, manifest)


def _notes(dataset: Dataset, classes: int, another: str) -> Iterator[str]:
    found = differences(dataset.name, classes, dataset.counts)
    if found:
        yield f"not the published sizes: {', '.join(found)}"
    elif another:
        yield another
    if dataset.note:
        yield dataset.note
    pairs = {(item.label, item.classname) for item in dataset.items}
    for split in ("train", "test"):
        there = {item.label for item in dataset.splits[split]}
        without = [name for label, name in sorted(pairs) if label not in there]
        if there and without:
            yield f"no {split} images of {len(without)} classes: {', '.join(without[:SHOWN_NAMES])}"
    if same := same_class(name for _, name in sorted(pairs)):
        yield f"CLIP reads the class names '{same[0]}' and '{same[1]}' as one"
    names = [name for _, name in sorted(pairs)]
    shown = names if len(names) <= SHOWN_NAMES else [*names[: SHOWN_NAMES - 1], "...", names[-1]]
    yield f"class names: {', '.join(shown)}"


def look(items: Sequence[Item], source: Source) -> Iterator[Seen]:
    """Read and decode each of `items`, in their order, on all CPUs that this process may use."""
    groups = [items[k : k + READ_AT_ONCE] for k in range(0, len(items), READ_AT_ONCE)]
    workers = num_cpus()
    with ThreadPoolExecutor(workers) as pool:
        waiting = iter(groups)
        # a few groups at a time: `map` would read the whole dataset ahead of a slow consumer
        while batch := list(islice(waiting, workers * 4)):
            for found in pool.map(lambda group: _look_at_group(group, source), batch):
                yield from found


def _look_at_group(items: Sequence[Item], source: Source) -> list[Seen]:
    try:
        files = source.read_many([item.path for item in items])
    except UserError as error:
        if len(items) == 1:
            path, says = items[0].path, str(error) or type(error).__name__
            return [Seen(path, b"", says if path in says else f"{path}: {says}")]
        return [seen for item in items for seen in _look_at_group([item], source)]
    return [_look_at(item, file) for item, file in zip(items, files, strict=True)]


def _look_at(item: Item, file: bytes) -> Seen:
    digest = hashlib.sha256(file).digest()
    try:
        decode(file, item.path)
    except UserError as error:
        return Seen(item.path, digest, str(error))
    return Seen(item.path, digest)
