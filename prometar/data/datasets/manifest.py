"""A prepared copy: manifest.json beside Parquet shards of (path, label, classname, split, image)."""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from prometar.data.datasets.dataset import Dataset, Item
from prometar.data.datasets.sources import AGAIN, ParquetSource, read_index
from prometar.errors import StorageError, UserError
from prometar.io.stores import Store, join, masked

MANIFEST = "manifest.json"
FORMAT = 1
INDEX_COLUMNS = ["path", "label", "classname", "split"]


_SHARD = re.compile(r"\w[\w.-]*", re.ASCII)


def find_manifest(uri: str) -> dict[str, Any] | None:
    """The manifest of a prepared folder, or None if there is none.

    Raises:
        UserError: it is malformed, or of another format.
        StorageError: it cannot be read, such as from a store that does not answer.
    """
    content, shown = Store(uri).read(MANIFEST), masked(join(uri, MANIFEST))
    if content is None:
        return None
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read {shown}: it is not JSON ({error})") from None
    shards = tree.get("shards") if isinstance(tree, dict) else None
    if not isinstance(shards, list) or not all(isinstance(s, dict) and "file" in s for s in shards):
        raise UserError(f"{shown} is not a manifest: {AGAIN}")
    if tree.get("format") != FORMAT:
        raise UserError(f"{shown} has format {tree.get('format')}, known is {FORMAT}: {AGAIN}")
    for shard in shards:
        if not _SHARD.fullmatch(str(shard["file"])):
            raise UserError(f"{shown}: no shard is called {str(shard['file'])!a}: {AGAIN}")
    return tree


def damaged_shards(uri: str, manifest: dict[str, Any]) -> Iterator[str]:
    """The shards of a prepared folder whose bytes are not those that its manifest has the digest of.

    Raises:
        StorageError: one cannot be read, such as from a store that does not answer.
    """
    store = Store(uri)
    for shard in manifest["shards"]:
        file = str(shard["file"])
        where, content = masked(join(uri, file)), store.read(file)
        if content is None:
            raise StorageError(f"cannot read shard {where}: it is not there")
        if hashlib.sha256(content).hexdigest() != shard.get("sha256"):
            yield f"shard {where} is not what {MANIFEST} says: {AGAIN}"


def open_prepared(uri: str, manifest: dict[str, Any], *, name: str, title: str, template: str) -> Dataset:
    """The dataset of a prepared folder; its items come in the order of the original split file.

    Raises:
        UserError: the copy is of another dataset.
        StorageError: A shard is missing or corrupt.
    """
    if manifest.get("name") != name:
        raise UserError(f"{masked(uri)} is a prepared copy of '{manifest.get('name')}', not of '{name}'")
    shards = tuple(str(shard["file"]) for shard in manifest["shards"])
    splits: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
    for shard in shards:
        table, _ = read_index(uri, shard, INDEX_COLUMNS)
        columns = (table.column(column).to_pylist() for column in INDEX_COLUMNS)
        for path, label, classname, split in zip(*columns, strict=True):
            if split not in splits:
                raise UserError(f"{masked(join(uri, shard))} names a split '{split}': {AGAIN}")
            splits[split].append(Item(path, label, classname))
    counts = {split: len(items) for split, items in splits.items()}
    if manifest.get("counts") != counts:
        raise UserError(
            f"{masked(uri)} holds {counts}, its {MANIFEST} says {manifest.get('counts')}: {AGAIN}"
        )
    train, val, test = (tuple(splits[split]) for split in ("train", "val", "test"))
    source, note = ParquetSource(uri, shards), str(manifest.get("note", ""))
    return Dataset(name, title, train, val, test, source, template, f"prepared copy {masked(uri)}", note)
