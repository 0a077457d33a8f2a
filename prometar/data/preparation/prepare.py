"""Write a dataset as Parquet shards and a manifest: one sequential copy for fast and remote reading.

The name of a shard contains a hash of its content, so an interrupted run resumes: finished shards are kept.
The manifest is written last, so a folder with one is complete.
"""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from prometar.data.datasets.benchmarks import BENCHMARKS
from prometar.data.datasets.catalog import FOLDER, lies_in, open_dataset, place_of
from prometar.data.datasets.dataset import Item
from prometar.data.datasets.prepared import MANIFEST, SCHEMA, Manifest, Shard, find_manifest
from prometar.data.preparation.check import decoded
from prometar.data.preparation.download import Progress
from prometar.errors import StorageError, UserError, WorkError
from prometar.io.files import resolved
from prometar.io.stores import masked, read_file, write_file

SHARD_ROWS = 1024
GROUP_ROWS = 16  # images read to get at one of them


def prepare(
    name: str,
    root: Path | str | None,
    to: Path | str,
    *,
    shard_rows: int = SHARD_ROWS,
    progress: Progress = lambda done, total: None,
) -> tuple[Manifest, int]:
    """Write `<to>/<folder>/manifest.json` and shards. Then `--data-root <to>` opens the copy.

    The dataset `folder` is its root, so its copy is written to `<to>` itself. Every image is decoded. If any
    is broken, all are named, and there is no manifest.

    Args:
        name, root: As for `open_dataset`.
        to: A folder or a URI that pyarrow knows (s3://bucket/path, gs://...); not the dataset's own folder.
        shard_rows: Images per shard.
        progress: Called with (finished shards, all shards).

    Returns:
        The copy's manifest, and the number of shards that existed.

    Raises:
        UserError: the dataset cannot be opened, or `to` lies in the user's data or contains another copy.
        WorkError: broken images, all named; or the target cannot be written.
    """
    known = (*BENCHMARKS, FOLDER)
    if name not in known:
        raise UserError(f"dataset '{name}' cannot be prepared: choose one of {', '.join(known)}")
    target = place_of(name, to if "://" in str(to) else resolved(to))
    local = target.removeprefix("file://")
    if "://" not in local and lies_in(Path(local), name, root):
        raise UserError(f"{target} lies in the dataset's own folder: choose another --to")
    earlier = find_manifest(target)
    if earlier is not None and earlier.name != name:
        raise UserError(f"{masked(target)} holds a prepared copy of '{earlier.name}': choose another folder")
    dataset = open_dataset(name, root)
    rows = [(item, split) for split, items in dataset.splits.items() for item in items]
    parts = [rows[k : k + shard_rows] for k in range(0, len(rows), shard_rows)]
    shards, broken, kept = list[Shard](), list[str](), 0
    for k, part in enumerate(parts):
        found = list(decoded([item for item, _ in part], dataset.source))
        broken += [message for _, message in found if message]
        if not broken:
            data = _encode(part, [image for image, _ in found])
            shard = Shard(file=f"{k:05d}-{hashlib.sha256(data).hexdigest()[:16]}.parquet")
            if earlier is not None and shard not in earlier.shards:
                raise UserError(
                    f"{masked(target)} holds another copy of '{name}': choose another --to, or remove it"
                )
            kept += _keep(target, shard.file, data)
            shards.append(shard)
        progress(k + 1, len(parts))
    if broken:
        count = f"{len(broken)} of {len(rows)} images of {name}"
        raise WorkError(f"{count} are broken: {'; '.join(broken)}")
    manifest = Manifest(name=name, counts=dataset.counts, note=dataset.note, shards=tuple(shards))
    _keep(target, MANIFEST, manifest.model_dump_json(indent=1).encode())
    return manifest, kept


def _encode(part: list[tuple[Item, str]], images: list[bytes]) -> bytes:
    rows = [
        {"path": item.path, "label": item.label, "classname": item.classname, "split": split, "image": image}
        for (item, split), image in zip(part, images, strict=True)
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_pylist(rows, schema=SCHEMA),
        sink,
        row_group_size=GROUP_ROWS,
        # photographs are compressed already; statistics of their bytes would only swell the footer
        compression={field.name: "NONE" if field.name == "image" else "ZSTD" for field in SCHEMA},
        use_dictionary=["classname", "split"],
        write_statistics=False,
        write_page_checksum=True,
    )
    return sink.getvalue().to_pybytes()


def _keep(target: str, file: str, data: bytes) -> bool:
    """Write a file unless it exists with this content. Return True if it does."""
    try:
        there = read_file(target, file) == data  # a corrupt shard has its name all the same
        if not there:
            write_file(target, file, data)
    except StorageError as error:
        raise WorkError(f"cannot write to {masked(target)}: {error}. Rerun this command to resume.") from None
    return there
