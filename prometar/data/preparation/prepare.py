"""Write a dataset as Parquet shards and a manifest: one sequential copy for fast and remote reading.

A shard's name holds the hash of its contents, so an interrupted run goes on where it stopped: finished
shards are kept. Each is written under a temporary name and renamed; the manifest comes last, so a folder
with one is complete.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from prometar.data.datasets.catalog import known, lies_in, open_dataset, place_of
from prometar.data.datasets.dataset import Dataset, Item, Source
from prometar.data.datasets.listing import SPLITS
from prometar.data.datasets.manifest import FORMAT, MANIFEST, find_manifest
from prometar.data.datasets.sources import SCHEMA
from prometar.data.preparation.check import look
from prometar.data.preparation.http import Progress, unwatched
from prometar.errors import StorageError, UserError, WorkError
from prometar.io.files import resolved
from prometar.io.stores import Store, filesystem, is_hidden, masked

SHARD_ROWS = 1024
GROUP_ROWS = 16  # images read to get at one of them
OWN_ENDINGS = (MANIFEST, ".parquet")  # what a target may hold already


@dataclass(frozen=True)
class PrepareResult:
    """Result of `prepare`.

    Attributes:
        name: The dataset.
        where: Folder or URI that holds the shards and the manifest.
        shards, images, bytes: How many there are, and the size of all shards.
        kept: Shards that were already there, from an earlier run.
    """

    name: str
    where: str
    shards: int
    kept: int
    images: int
    bytes: int

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.images} images, {self.bytes / 1e6:.1f} MB in {self.shards} shards "
            f"({self.kept} were there) at {self.where}"
        )


def prepare(
    name: str,
    root: Path | str | None,
    to: Path | str,
    *,
    shard_rows: int = SHARD_ROWS,
    progress: Progress = unwatched,
) -> PrepareResult:
    """Write `<to>/<folder>/manifest.json` and shards; then `--data-root <to>` opens the copy.

    The dataset `folder` is its root, so its copy is written to `<to>` itself.

    Every image is decoded first: if any is broken, all are named and nothing is written.

    Args:
        name, root: As for `open_dataset`.
        to: A folder or a URI that pyarrow knows (s3://bucket/path, gs://...); not the dataset's own folder.
        shard_rows: Images a shard (default 1024).
        progress: Called with (shards done, shards in all).

    Raises:
        UserError: the dataset cannot be opened, or `to` lies in the user's data or holds a copy of others.
        WorkError: broken images, all named; or the target cannot be written.
    """
    target = target_of(name, root, to)
    return write_copy(open_dataset(name, root), target, shard_rows, progress=progress)


def write_copy(
    dataset: Dataset, target: str, shard_rows: int = SHARD_ROWS, *, progress: Progress
) -> PrepareResult:
    """Write a dataset to a folder or URI of `target_of`; otherwise as `prepare`."""
    if shard_rows < 1:
        raise UserError(f"shard_rows must be at least 1, found {shard_rows}")
    rows = [(item, split) for split in SPLITS for item in dataset.splits[split]]
    seen = list(look(dataset.items, dataset.source))
    broken = [one.message for one in seen if one.message]
    if broken:
        count = f"{len(broken)} of {len(rows)} images of {dataset.name}"
        raise WorkError(f"{count} are broken: {'; '.join(broken)}")
    digest = hashlib.sha256(b"".join([dataset.digest.encode(), *(one.digest for one in seen)])).hexdigest()
    earlier = find_manifest(target)
    if earlier is not None and earlier.get("digest") != digest:
        raise UserError(
            f"{masked(target)} holds a prepared copy of other images that are called '{dataset.name}' too: "
            "choose another --to, or remove it"
        )
    return _write(dataset, digest, rows, target, shard_rows, progress)


def target_of(name: str, root: Path | str | None, to: Path | str) -> str:
    """Return the target of the copy. It is never in the user's data, nor another copy."""
    if name not in known():
        raise UserError(f"unknown dataset '{name}': known are {', '.join(known())}")
    target = place_of(name, to if "://" in str(to) else resolved(to))
    earlier = find_manifest(target)
    if earlier is not None and earlier.get("name") != name:
        raise UserError(
            f"{masked(target)} holds a prepared copy of '{earlier.get('name')}': choose another folder"
        )
    system, path = filesystem(target)
    if not isinstance(system, fs.LocalFileSystem):
        return target
    place = resolved(path)
    if lies_in(place, name, root):
        raise UserError(f"{target} lies in the dataset's own folder: choose another --to")
    if place.is_dir():
        strange = [file.name for file in place.iterdir() if not _is_own(file.name)]
        if strange:
            raise UserError(f"{target} holds other files (such as {min(strange)}): choose another --to")
    return target


def _is_own(name: str) -> bool:
    """Return True for a file of a copy, or one that a killed process was writing."""
    whole = name.rpartition(".")[0] if is_hidden(name) else name
    return whole.endswith(OWN_ENDINGS)


def _write(
    dataset: Dataset,
    digest: str,
    rows: list[tuple[Item, str]],
    target: str,
    shard_rows: int,
    progress: Progress,
) -> PrepareResult:
    store = Store(target)
    parts = [rows[k : k + shard_rows] for k in range(0, len(rows), shard_rows)]
    records: list[dict[str, Any]] = []
    kept = size = 0
    for k, part in enumerate(parts):
        data = _encode(part, dataset.source)
        sha256 = hashlib.sha256(data).hexdigest()
        # contents name the shard: a finished one is recognised, a stale one is never mistaken for it
        file = f"{k:05d}-{sha256[:16]}.parquet"
        kept += _keep(store, file, data, target)
        size += len(data)
        records.append({"file": file, "rows": len(part), "bytes": len(data), "sha256": sha256})
        progress(k + 1, len(parts))
    manifest = {
        "format": FORMAT,
        "name": dataset.name,
        "title": dataset.title,
        "counts": dataset.counts,
        "classnames": list(dataset.classnames),
        "note": dataset.note,
        "digest": digest,
        "shards": records,
    }
    _keep(store, MANIFEST, json.dumps(manifest, indent=1).encode(), target)
    return PrepareResult(dataset.name, masked(target), len(parts), kept, len(rows), size)


def _encode(part: list[tuple[Item, str]], source: Source) -> bytes:
    images = source.read_many([item.path for item, _ in part])
    rows = [
        {"path": item.path, "label": item.label, "classname": item.classname, "split": split, "image": image}
        for (item, split), image in zip(part, images, strict=True)
    ]
    sink = pa.BufferOutputStream()
    # photographs are compressed already; statistics of their bytes would only swell the footer
    options: dict[str, Any] = {
        "compression": {field.name: "NONE" if field.name == "image" else "ZSTD" for field in SCHEMA},
        "use_dictionary": ["classname", "split"],
        "write_statistics": False,
        "write_page_checksum": True,
    }
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    pq.write_table(table, sink, row_group_size=GROUP_ROWS, **options)
    return sink.getvalue().to_pybytes()


def _keep(store: Store, file: str, data: bytes, target: str) -> bool:
    """Have a file hold this; True if it does already."""
    try:
        there = store.read(file) == data  # a damaged shard has its name all the same
        if not there:
            store.write(file, data)
    except StorageError as error:
        where = masked(target)
        raise WorkError(f"cannot write to {where}: {error}; the same command goes on from here") from None
    return there
