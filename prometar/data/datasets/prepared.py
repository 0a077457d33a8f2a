"""Prepared copies: manifest.json beside Parquet shards of (path, label, classname, split, image)."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, ValidationError

from prometar.data.datasets.dataset import SPLITS, Dataset, Item
from prometar.errors import StorageError, UserError
from prometar.io.plain_data import problems_of
from prometar.io.stores import filesystem, join, masked, read_file, reason

MANIFEST = "manifest.json"
SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("classname", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
    ]
)
"""Columns of a shard."""
INDEX_COLUMNS = ["path", "label", "classname", "split"]
AGAIN = "delete this copy and prepare it again"  # the fix for a corrupt copy
READ_THREADS = 8  # an object store answers slowly but many at once


class Shard(BaseModel):
    """A Parquet file of a copy, named by a hash of its content."""

    file: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")


class Manifest(BaseModel):
    """Content of manifest.json. It is written last, so a copy that has one is complete."""

    format: Literal[1] = 1
    name: str
    counts: dict[str, int]
    note: str = ""
    shards: tuple[Shard, ...]


def find_manifest(uri: str) -> Manifest | None:
    """Return the manifest of a prepared folder, or None if there is none.

    Raises:
        UserError: it is malformed, or has another format.
        StorageError: it cannot be read, such as from a store that does not answer.
    """
    content = read_file(uri, MANIFEST)
    try:
        return None if content is None else Manifest.model_validate_json(content)
    except ValidationError as error:
        raise UserError(f"cannot read {masked(join(uri, MANIFEST))}: {problems_of(error)}: {AGAIN}") from None


def open_prepared(uri: str, manifest: Manifest, *, name: str, title: str, template: str) -> Dataset:
    """Return the dataset of a prepared folder. Its items have the order of the original list.

    Raises:
        UserError: the copy is of another dataset.
        StorageError: a shard is missing or corrupt.
    """
    if manifest.name != name:
        raise UserError(f"{masked(uri)} is a prepared copy of '{manifest.name}', not of '{name}'")
    source = ParquetSource(uri, tuple(shard.file for shard in manifest.shards))
    splits: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for shard in source.shards:
        table, _ = _read_index(uri, shard, INDEX_COLUMNS)
        columns = (table.column(column).to_pylist() for column in INDEX_COLUMNS)
        for path, label, classname, split in zip(*columns, strict=True):
            splits.setdefault(split, []).append(Item(path, label, classname))
    counts = {split: len(items) for split, items in splits.items()}
    if manifest.counts != counts:
        raise UserError(f"{masked(uri)} holds {counts}, its {MANIFEST} says {manifest.counts}: {AGAIN}")
    train, val, test = (tuple(splits[split]) for split in SPLITS)
    origin = f"prepared copy {masked(uri)}"
    return Dataset(name, title, train, val, test, source, template, origin, manifest.note)


@dataclass(frozen=True)
class ParquetSource:
    """Shards of a prepared copy. Only row groups that contain the requested images are read.

    Args:
        uri: The prepared folder: a local path or a URI that pyarrow knows (s3://, gs://, ...).
        shards: Names of the files in it.
    """

    uri: str
    shards: tuple[str, ...]

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        """Return the stored bytes, equal to the original files'.

        Raises:
            UserError: no shard contains a path.
            StorageError: a shard cannot be read.
        """
        index = _path_index(self.uri, self.shards)
        wanted: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for k, path in enumerate(paths):
            if path not in index:
                raise UserError(f"{masked(self.uri)} holds no image '{path}': {AGAIN}")
            shard, group, row = index[path]
            wanted.setdefault((shard, group), []).append((row, k))
        found: list[bytes] = [b""] * len(paths)

        def fetch(place: tuple[int, int]) -> None:
            with _shard(self.uri, self.shards[place[0]]) as file:
                column = file.read_row_group(place[1], columns=["image"]).column(0)
                for row, k in wanted[place]:
                    found[k] = column[row].as_py()

        with ThreadPoolExecutor(READ_THREADS) as pool:
            list(pool.map(fetch, sorted(wanted)))
        return found


@lru_cache(maxsize=8)
def _path_index(uri: str, shards: tuple[str, ...]) -> dict[str, tuple[int, int, int]]:
    """Return path -> (shard, row group, row). It is read once per process."""
    index: dict[str, tuple[int, int, int]] = {}
    for s, shard in enumerate(shards):
        table, sizes = _read_index(uri, shard, ["path"])
        places = ((s, group, row) for group, size in enumerate(sizes) for row in range(size))
        index.update(zip(table.column("path").to_pylist(), places, strict=True))
    return index


def _read_index(uri: str, shard: str, columns: list[str]) -> tuple[pa.Table, list[int]]:
    """Return the small columns of a shard, and the number of rows of each row group."""
    with _shard(uri, shard) as file:
        meta = file.metadata
        groups = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
        fields = [field for field in SCHEMA if field.name in columns]
        return file.read(columns=columns).select(columns).cast(pa.schema(fields)), groups


@contextmanager
def _shard(uri: str, shard: str) -> Iterator[pq.ParquetFile]:
    """Open a shard.

    Raises:
        StorageError: it is missing or corrupt, or has other columns.
    """
    system, folder = filesystem(uri)
    try:
        with system.open_input_file(f"{folder}/{shard}") as stream:
            # Without checksums, a changed bit would be another image that nobody notices.
            yield pq.ParquetFile(stream, metadata=_footer(uri, shard), page_checksum_verification=True)
    except (OSError, LookupError, ValueError, pa.ArrowException) as error:
        raise StorageError(
            f"cannot read shard {masked(join(uri, shard))}: {reason(error)}; if it is corrupt, {AGAIN}"
        ) from None


@lru_cache(maxsize=4096)
def _footer(uri: str, shard: str) -> pq.FileMetaData:
    """Read a shard's footer once per process, since an object store answers slowly."""
    system, folder = filesystem(uri)
    with system.open_input_file(f"{folder}/{shard}") as stream:
        return pq.read_metadata(stream)
