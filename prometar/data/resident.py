"""Encoded images in Ray's object store: put once a process, then looked up by every stream and epoch."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import pyarrow as pa
import ray

from prometar.data.dataset import Item, Source

SAMPLE = 32  # images read to estimate the size of a data set
READ_AT_ONCE = 256
CACHE_BYTES = 2**31

_cache: OrderedDict[tuple[str, ...], tuple[ray.ObjectRef, int]] = OrderedDict()


def image_table(items: Sequence[Item], source: Source, resident_bytes: int) -> ray.ObjectRef:
    """A reference to an Arrow table with a row an item: `path` and, up to `resident_bytes`, `image`.

    Tables of the same items and source are put once a process; the least recently used go when all together
    exceed 2 GiB.

    Raises:
        UserError: an image is missing.
    """
    paths = [item.path for item in items]
    state = hashlib.sha256(repr((source, resident_bytes)).encode())
    state.update("\0".join(paths).encode())
    context = ray.get_runtime_context()
    key = (context.get_node_id(), context.get_job_id(), state.hexdigest())  # a new ray.init has a new node
    if key not in _cache:
        table = _read(paths, source, resident_bytes)
        _cache[key] = (ray.put(table), table.nbytes)
        while len(_cache) > 1 and sum(size for _, size in _cache.values()) > CACHE_BYTES:
            _cache.popitem(last=False)
    _cache.move_to_end(key)
    return _cache[key][0]


def _read(paths: list[str], source: Source, resident_bytes: int) -> pa.Table:
    columns: dict[str, pa.Array] = {"path": pa.array(paths, pa.string())}
    sample = paths[:: max(1, len(paths) // SAMPLE)][:SAMPLE]
    sampled = sum(map(len, source.read_many(sample)))
    if sampled / len(sample) * len(paths) <= resident_bytes:
        images: list[bytes] = []
        for k in range(0, len(paths), READ_AT_ONCE):
            images += source.read_many(paths[k : k + READ_AT_ONCE])
        columns["image"] = pa.array(images, pa.large_binary())
    return pa.table(columns)
