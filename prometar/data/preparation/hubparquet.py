"""Parquet files of images as the hub has them: their columns, labels, class names and bytes."""

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prometar.data.datasets.hubname import HubName
from prometar.data.datasets.sources import read_group, require_rows
from prometar.data.preparation.archives import MAX_GROWTH, MAX_SLACK_BYTES
from prometar.data.preparation.hub import HubFile
from prometar.errors import UserError, WorkError, first_line


@dataclass(frozen=True)
class ImageFile:
    """A downloaded file that has the columns asked for: where it lies, and the rows of its row groups."""

    path: str
    image: str
    label: str
    groups: tuple[int, ...]

    @classmethod
    def open(cls, path: Path, file: HubFile, wanted: HubName) -> "ImageFile":
        """
        Raises:
            UserError: a missing column, one that is there twice, or of another kind.
            WorkError: the file is damaged.
        """
        with _damage(file.path):
            meta, schema = pq.read_metadata(path), pq.read_schema(path)
            groups = tuple(meta.row_group(k).num_rows for k in range(meta.num_row_groups))
        _require_columns(schema, wanted)
        return cls(str(path), wanted.image, wanted.label, groups)

    @property
    def rows(self) -> int:
        return sum(self.groups)

    def require_bounded(self) -> None:
        """Refuse a file that would fill memory or disk: one value in it may stand for many rows.

        Raises:
            WorkError: its images and labels take more than a file of images can.
        """
        most, held = Path(self.path).stat().st_size * MAX_GROWTH + MAX_SLACK_BYTES, 0
        with _damage(self.path):
            table = pq.ParquetFile(self.path)
            # row by row: a thousand rows of one large value are never in memory
            for row in table.iter_batches(1, columns=[_leaf(table, self.image), self.label]):
                held += row.nbytes
                if held > most:
                    raise WorkError(f"{self.path} holds more than a file of images can: it is not read")

    def labels(self) -> list[int | str | None]:
        with _damage(self.path):
            table = pq.ParquetFile(self.path).read(columns=[self.label])
            require_rows(table, sum(self.groups))
            return list(table.column(self.label).to_pylist())

    def classnames(self) -> tuple[str, ...]:
        """The names that the library `datasets` keeps with a column of class labels; none of another file."""
        metadata = pq.read_schema(self.path).metadata or {}
        try:
            names = json.loads(metadata[b"huggingface"])["info"]["features"][self.label]["names"]
        except (KeyError, TypeError, ValueError, RecursionError):
            return ()
        texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
        return tuple(names) if texts else ()


def _require_columns(schema: pa.Schema, wanted: HubName) -> None:
    for option, column in (("image", wanted.image), ("label", wanted.label)):
        if (count := schema.names.count(column)) != 1:
            has = ", ".join(f"{field.name} ({_shown(field.type)})" for field in schema)
            raise UserError(
                f"{wanted.repo} has {count or 'no'} columns '{column}' among {has}: "
                f"choose one with ?{option}=NAME"
            )
    image, label = schema.field(wanted.image).type, schema.field(wanted.label).type
    if not _is_bytes(image) and not _has_bytes(image):
        raise UserError(
            f"the column '{wanted.image}' of {wanted.repo} holds no images: it is {_shown(image)}"
        )
    kinds = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string)
    if not any(is_kind(label) for is_kind in kinds):
        raise UserError(
            f"the column '{wanted.label}' of {wanted.repo} holds no labels: it is {_shown(label)}, "
            "and neither whole numbers nor text"
        )


def _shown(kind: pa.DataType) -> str:
    return f"{kind}"[:60]


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _has_bytes(kind: pa.DataType) -> bool:
    k = kind.get_field_index("bytes") if pa.types.is_struct(kind) else -1
    return k >= 0 and _is_bytes(kind.field(k).type)


def _leaf(table: pq.ParquetFile, column: str) -> str:
    """What of a column is read."""
    return f"{column}.bytes" if _has_bytes(table.schema_arrow.field(column).type) else column


@contextmanager
def _damage(file: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise WorkError(f"cannot read {file}: {first_line(error)}; delete it and run again") from None


@dataclass(frozen=True)
class _Group:
    """A row group of a file, and the rank of its first row in the folder."""

    file: str
    number: int
    start: int


@dataclass(frozen=True)
class HubSource:
    """The images of downloaded files: a column of bytes, or of {bytes, path} as the hub writes images.

    Args:
        column: The images'.
        groups: Row groups by folder, in their order; an image is called `<folder>/<rank>`.
    """

    column: str
    groups: Mapping[str, Sequence[_Group]]

    @classmethod
    def of(cls, column: str, tables: Mapping[str, Sequence[ImageFile]]) -> "HubSource":
        groups: dict[str, list[_Group]] = {}
        for folder, part in tables.items():
            start, groups[folder] = 0, []
            for table in part:
                for number, rows in enumerate(table.groups):
                    groups[folder].append(_Group(table.path, number, start))
                    start += rows
        return cls(column, groups)

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        return [self._read(path) for path in paths]

    def _read(self, path: str) -> bytes:
        folder, _, rank = path.rpartition("/")
        groups = self.groups[folder]
        group = groups[bisect_right(groups, int(rank), key=lambda group: group.start) - 1]
        with _ONE_AT_A_TIME:
            column = _read_group(group.file, group.number, self.column)
        found = column[int(rank) - group.start].as_py()
        if found is None:
            raise UserError(f"image {path} is not in the data set's files: only its name is")
        return bytes(found)


_ONE_AT_A_TIME = Lock()  # else several threads would read the same row group, each for itself


@lru_cache(maxsize=2)
def _read_group(file: str, number: int, column: str) -> pa.ChunkedArray:
    with _damage(file):
        table = pq.ParquetFile(file)
        found = read_group(table, number, _leaf(table, column))
    return pc.struct_field(found, "bytes") if pa.types.is_struct(found.type) else found


def forget() -> None:
    """Give back the memory of the row groups read last."""
    _read_group.cache_clear()
