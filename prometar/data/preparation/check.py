"""Read-only checks: which datasets are there, and what is wrong with one."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prometar.bundled.suite import SUITE
from prometar.data.datasets.benchmarks import BENCHMARKS
from prometar.data.datasets.catalog import FOLDER, KNOWN, open_dataset, open_unverified, place_of, wrong_items
from prometar.data.datasets.dataset import Dataset, FolderSource, Item, Source
from prometar.data.datasets.prepared import find_manifest
from prometar.data.streaming.transforms import decode
from prometar.environment import num_cpus
from prometar.errors import PrometarError, UserError

READ_AT_ONCE = 16  # images
SHOWN_NAMES = 12


def list_datasets(root: Path | str | None = None) -> dict[str, Dataset | str | None]:
    """Return every known dataset: opened, the reason why it cannot be opened, or None if it is missing.

    Raises:
        UserError: `root` itself is missing.
        StorageError: a store does not answer.
    """
    if root is not None and "://" in str(root):
        find_manifest(str(root))  # wait for a store that does not answer once, not for each dataset
    elif root is not None and not Path(root).is_dir():
        raise UserError(f"data root {root} is not a folder: pass --data-root DIR")
    found = {name: _listed(name, root) for name in KNOWN}
    if isinstance(found[FOLDER], str) and any(found[name] is not None for name in BENCHMARKS):
        found[FOLDER] = None  # a data root is not a tree of class folders
    return found


def _listed(name: str, root: Path | str | None) -> Dataset | str | None:
    place = place_of(name, root or "")
    try:
        if "://" in place:
            there = find_manifest(place) is not None
        else:
            there = root is not None and Path(place).is_dir()
        return open_dataset(name, root) if there or name in SUITE else None
    except PrometarError as error:
        return str(error)


def other_sizes(name: str, classes: int, counts: dict[str, int]) -> tuple[str, ...]:
    """Return differences from the published sizes of a benchmark, such as "train 600 of 2820"."""
    if name not in BENCHMARKS:
        return ()
    published = {"classes": BENCHMARKS[name].classes, **BENCHMARKS[name].sizes}
    found = {"classes": classes, **counts}
    return tuple(f"{what} {found[what]} of {size}" for what, size in published.items() if found[what] != size)


def check(name: str, root: Path | str | None = None) -> tuple[list[str], list[str], list[str]]:
    """Check the list and decode every image of a dataset.

    Args:
        name, root: As for `open_dataset`.

    Returns:
        Errors of the list, such as labels with two names. A message per image that is missing, in a corrupt
        shard, or cannot be decoded. A summary, followed by notes: other sizes or another split file than
        published, a split made here, the class names.

    Raises:
        UserError: the dataset cannot be opened.
    """
    dataset = open_unverified(name, root)
    items = list({item.path: item for item in dataset.items}.values())
    broken = [message for _, message in decoded(items, dataset.source) if message]
    sizes = ", ".join(f"{split} {count}" for split, count in dataset.counts.items())
    state = f"{len(broken)} broken" if broken else "all whole"
    summary = f"{name}: {len(dataset.classnames)} classes, {sizes} images, {state}"
    return list(wrong_items(dataset)), broken, [summary, *_notes(dataset, root)]


def _notes(dataset: Dataset, root: Path | str | None) -> Iterator[str]:
    row, shown = BENCHMARKS.get(dataset.name), list(dataset.classnames)
    names = {item.label: item.classname for item in dataset.items}
    if found := other_sizes(dataset.name, len(names), dataset.counts):
        yield f"not the published sizes: {', '.join(found)}"
    elif row and row.split_digest and isinstance(dataset.source, FolderSource):
        file = Path(place_of(row.name, str(root)), row.split_file)
        if digest_of(file, "sha256") != row.split_digest:
            yield f"{file.name} is not CoOp's, byte for byte: figures may not compare with published ones"
    if dataset.note:
        yield dataset.note
    for split in ("train", "test"):
        there = {item.label for item in dataset.splits[split]}
        without = [name for label, name in names.items() if label not in there]
        if there and without:
            yield f"no {split} images of {len(without)} classes: {', '.join(without[:SHOWN_NAMES])}"
    if len(shown) > SHOWN_NAMES:
        shown[SHOWN_NAMES - 1 : -1] = ["..."]
    yield f"class names: {', '.join(shown)}"


def digest_of(file: Path, kind: str) -> str:
    """Return the digest of a file, such as "md5:<hex>"."""
    with file.open("rb") as stream:
        return f"{kind}:{hashlib.file_digest(stream, kind).hexdigest()}"


def decoded(items: Sequence[Item], source: Source) -> Iterator[tuple[bytes, str]]:
    """Read and decode `items` on all CPUs.

    Yields:
        Encoded image and "", or no bytes and why it is broken, per item and in order.
    """
    workers = num_cpus()
    step = READ_AT_ONCE * workers * 4  # `map` would read the whole dataset ahead of a slow consumer
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(items), step):
            part = items[start : start + step]
            groups = [part[k : k + READ_AT_ONCE] for k in range(0, len(part), READ_AT_ONCE)]
            for found in pool.map(lambda group: _decoded_group(group, source), groups):
                yield from found


def _decoded_group(items: Sequence[Item], source: Source) -> list[tuple[bytes, str]]:
    try:
        files = source.read_many([item.path for item in items])
        for file, item in zip(files, items, strict=True):
            decode(file, item.path)
    except PrometarError as error:
        if len(items) > 1:  # each broken image has its own message
            return [found for item in items for found in _decoded_group([item], source)]
        return [(b"", str(error) if items[0].path in str(error) else f"{items[0].path}: {error}")]
    return [(file, "") for file in files]
