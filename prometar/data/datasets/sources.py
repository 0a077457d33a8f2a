"""Sources of encoded images: a folder, the embedded renderer, or prepared Parquet shards."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from prometar.bundled.suite import SUITE
from prometar.errors import StorageError, UserError
from prometar.io.files import read_bytes
from prometar.io.stores import filesystem, join, masked, reason

SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("classname", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
    ]
)
"""The columns of a shard."""
AGAIN = "delete this copy and prepare it again"  # what helps where a prepared copy is damaged
READ_THREADS = 8  # an object store answers slowly but many at once


@dataclass(frozen=True)
class FolderSource:
    """Image files below a folder, as a benchmark is unpacked."""

    folder: str

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        return [self._read(path) for path in paths]

    def _read(self, path: str) -> bytes:
        file = Path(self.folder, path)
        try:
            return read_bytes(file)
        except OSError as error:
            raise UserError(
                f"cannot read image {file} ({error.strerror}): "
                "restore it, or pass --data-root with a complete copy"
            ) from None


@dataclass(frozen=True)
class RenderedSource:
    """The dataset `name` of the embedded suite: images are rendered when they are read, as PNG files."""

    name: str

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        return [_rendered(self.name, path) for path in paths]


@lru_cache(maxsize=1024)
def _rendered(name: str, path: str) -> bytes:
    """Kept, some 10 KiB each: every epoch reads the images of a few-shot run again."""
    return SUITE[name].encode(path)


@dataclass(frozen=True)
class ParquetSource:
    """Shards written by `prometar data prepare`; only the row groups that hold the wanted images are read.

    Args:
        uri: The prepared folder: a local path or a URI that pyarrow knows (s3://, gs://, ...).
        shards: File names in it.
    """

    uri: str
    shards: tuple[str, ...]

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        """The stored bytes, equal to the original files'.

        Raises:
            UserError: a path that no shard holds.
            WorkError: a shard cannot be read.
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

        places = sorted(wanted)
        if "://" in self.uri and len(places) > 1:
            with ThreadPoolExecutor(READ_THREADS) as pool:
                list(pool.map(fetch, places))
        else:
            for place in places:
                fetch(place)
        return found


def read_index(uri: str, shard: str, columns: list[str]) -> tuple[pa.Table, list[int]]:
    """The small columns of a shard, and the number of rows of each of its row groups.

    Raises:
        StorageError: The shard is missing or corrupt, or has other columns.
    """
    with _shard(uri, shard) as file:
        meta = file.metadata
        groups = [meta.row_group(g).num_rows for g in range(meta.num_row_groups)]
        fields = [field for field in SCHEMA if field.name in columns]
        return file.read(columns=columns).select(columns).cast(pa.schema(fields)), groups


@contextmanager
def _shard(uri: str, shard: str) -> Iterator[pq.ParquetFile]:
    """Open a shard."""
    system, folder = filesystem(uri)
    try:
        with system.open_input_file(f"{folder}/{shard}") as stream:
            # A changed bit would be another picture that nobody notices.
            yield pq.ParquetFile(stream, metadata=_footer(uri, shard), page_checksum_verification=True)
    except (OSError, LookupError, ValueError, pa.ArrowException) as error:
        raise StorageError(
            f"cannot read shard {masked(join(uri, shard))}: {reason(error)}; if it is damaged, {AGAIN}"
        ) from None


@lru_cache(maxsize=4096)
def _footer(uri: str, shard: str) -> pq.FileMetaData:
    """A shard's footer, read once a process: an object store answers slowly."""
    system, folder = filesystem(uri)
    with system.open_input_file(f"{folder}/{shard}") as stream:
        return pq.read_metadata(stream)


@lru_cache(maxsize=8)
def _path_index(uri: str, shards: tuple[str, ...]) -> dict[str, tuple[int, int, int]]:
    """path -> (shard, row group, row); read once a process."""
    index: dict[str, tuple[int, int, int]] = {}
    for s, shard in enumerate(shards):
        table, sizes = read_index(uri, shard, ["path"])
        places = ((s, group, row) for group, size in enumerate(sizes) for row in range(size))
        index.update(zip(table.column("path").to_pylist(), places, strict=True))
    return index
