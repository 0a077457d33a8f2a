"""Read copies made by `prometar data prepare`: manifest.json, and Parquet shards with one row per image."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, ValidationError

from prometar.data.datasets.dataset import SPLITS, Dataset, Item
from prometar.errors import InfrastructureError, UserError
from prometar.io.stores import filesystem_and_path, join, masked, masked_message, read_file
from prometar.io.strict_model import problems_of

MANIFEST = "manifest.json"
_ITEM_COLUMNS = {"path": pa.string(), "label": pa.int64(), "classname": pa.string(), "split": pa.string()}
_COLUMNS = {**_ITEM_COLUMNS, "image": pa.binary()}
SCHEMA = pa.schema([pa.field(name, kind, nullable=False) for name, kind in _COLUMNS.items()])
"""Columns of a shard."""
_REBUILD = "Delete this copy and rerun `prometar data prepare`."
_NUM_THREADS = 8  # object stores have a high latency, but serve many requests in parallel

ShardEntry = dict[Literal["file"], Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]]
"""Manifest entry of a shard: {"file": name}. The name contains a hash of the file's content."""


class Manifest(BaseModel):
    """Content of manifest.json, which is written last and marks a complete copy.

    Args:
        format: Version of the format.
        counts: Number of images by split.
        name, note, base_classes: As in `Dataset`.
        shards: Shards in the order of their images.
    """

    format: Literal[1] = 1
    name: str
    counts: dict[str, int]
    note: str = ""
    base_classes: tuple[str, ...] = ()
    shards: tuple[Annotated[ShardEntry, Field(min_length=1)], ...]


def find_manifest(uri: str) -> Manifest | None:
    """Return the manifest in a folder, or None if the folder is not a prepared copy.

    Raises:
        UserError: the manifest is malformed, or has another format version.
        InfrastructureError: the store does not respond, or the manifest cannot be read.
    """
    content = read_file(uri, MANIFEST)
    if content is None:
        return None
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        file = masked(join(uri, MANIFEST))
        raise UserError(f"Cannot read {file} ({problems_of(error)}). Rename or restore it.") from None


def open_prepared(uri: str, manifest: Manifest, *, name: str, title: str, template: str) -> Dataset:
    """Return the dataset of a prepared copy, with the items in the order of the copied dataset.

    Raises:
        UserError: the copy contains another dataset, or its image counts differ from those in the manifest.
        InfrastructureError: a shard is missing or corrupt.
    """
    if manifest.name != name:
        raise UserError(f"{masked(uri)} is a prepared copy of '{manifest.name}', not of '{name}'.")
    shards = tuple(shard["file"] for shard in manifest.shards)
    splits: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for shard in shards:
        table, _ = _read_columns(uri, shard, list(_ITEM_COLUMNS))
        columns = table.to_pydict()
        items = map(Item, columns["path"], columns["label"], columns["classname"])
        for item, split in zip(items, columns["split"], strict=True):
            splits.setdefault(split, []).append(item)
    counts = {split: len(items) for split, items in splits.items()}
    if manifest.counts != counts:
        raise UserError(f"{masked(uri)} has {counts} images, {MANIFEST} lists {manifest.counts}. {_REBUILD}")
    return Dataset(
        name,
        title,
        train=tuple(splits["train"]),
        val=tuple(splits["val"]),
        test=tuple(splits["test"]),
        source=ParquetSource(uri, shards),
        template=template,
        items_origin=f"prepared copy {masked(uri)}",
        note=manifest.note,
        base_classes=manifest.base_classes,
    )


@dataclass(frozen=True)
class ParquetSource:
    """Images in the shards of a prepared copy.

    A shard is a Parquet file whose rows form row groups. Reading an image reads its whole row group.

    Args:
        uri: Folder of the copy: a local path or a URI that pyarrow supports (s3://, gs://, ...).
        shards: File names of the shards.
    """

    uri: str
    shards: tuple[str, ...]

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        """Return the content of the original image files at `paths`.

        Raises:
            UserError: an image is in no shard.
            InfrastructureError: a shard cannot be read.
        """
        place_by_path = _path_index(self.uri, self.shards)
        places: list[_Place] = []
        positions_by_group: dict[tuple[str, int], list[int]] = {}
        for position, path in enumerate(paths):
            if path not in place_by_path:
                raise UserError(f"{masked(self.uri)} does not contain the image '{path}'. {_REBUILD}")
            place = place_by_path[path]
            places.append(place)
            positions_by_group.setdefault((place.shard, place.group), []).append(position)
        images: list[bytes] = [b""] * len(paths)

        def read_group(shard_and_group: tuple[str, int]) -> None:
            """Read one row group, and put its images into `images`."""
            shard, group = shard_and_group
            with _open_shard(self.uri, shard) as file:
                column = file.read_row_group(group, columns=["image"]).column("image")
                for position in positions_by_group[shard_and_group]:
                    row = places[position].row
                    images[position] = column[row].as_py()

        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            for _ in pool.map(read_group, sorted(positions_by_group)):
                pass  # the iteration raises the errors of the threads
        return images


class _Place(NamedTuple):
    """Place of an image in a prepared copy.

    Args:
        shard: File name of the shard.
        group: Row group of the shard, from 0.
        row: Row of the group, from 0.
    """

    shard: str
    group: int
    row: int


@lru_cache(maxsize=8)
def _path_index(uri: str, shards: tuple[str, ...]) -> dict[str, _Place]:
    """Return the place of each image by path."""
    place_by_path: dict[str, _Place] = {}
    for shard in shards:
        table, group_sizes = _read_columns(uri, shard, ["path"])
        paths = table.column("path").to_pylist()
        places: list[_Place] = []
        for group, size in enumerate(group_sizes):
            places += [_Place(shard, group, row) for row in range(size)]
        place_by_path.update(zip(paths, places, strict=True))
    return place_by_path


def _read_columns(uri: str, shard: str, columns: list[str]) -> tuple[pa.Table, list[int]]:
    """Return the named `columns` of a shard, and the number of rows in each of its row groups."""
    with _open_shard(uri, shard) as file:
        footer = file.metadata
        group_sizes = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        schema = pa.schema([SCHEMA.field(name) for name in columns])
        table = file.read(columns=columns).select(columns).cast(schema)
        return table, group_sizes


@contextmanager
def _open_shard(uri: str, shard: str) -> Iterator[pq.ParquetFile]:
    """Open a shard for a `with` block.

    Raises:
        InfrastructureError: the shard cannot be read in the `with` block, or lacks a column.
    """
    system, folder = filesystem_and_path(uri)
    try:
        with system.open_input_file(f"{folder}/{shard}") as stream:
            # Without checksums, a flipped bit would silently change an image.
            yield pq.ParquetFile(stream, metadata=_read_footer(uri, shard), page_checksum_verification=True)
    except (OSError, LookupError, ValueError, pa.ArrowException) as error:
        raise InfrastructureError(
            f"Cannot read shard {masked(join(uri, shard))} ({masked_message(error)}). "
            "If the file is corrupt, delete this copy and rerun `prometar data prepare`."
        ) from None


@lru_cache(maxsize=4096)
def _read_footer(uri: str, shard: str) -> pq.FileMetaData:
    """Return a shard's footer. Cached, because object stores have a high latency."""
    system, folder = filesystem_and_path(uri)
    with system.open_input_file(f"{folder}/{shard}") as stream:
        return pq.read_metadata(stream)
