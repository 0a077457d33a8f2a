"""Write a dataset as Parquet shards and a manifest, for sequential and remote reading.

The name of a shard contains a hash of its content. A rerun decodes every image again, but writes a shard only
if it is missing or corrupt. The manifest is written last, so its presence marks a complete copy.
"""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from prometar.data.datasets.benchmarks import BENCHMARKS
from prometar.data.datasets.catalog import OWN_IMAGES, dataset_location, is_in_dataset_folder, open_dataset
from prometar.data.datasets.dataset import Item
from prometar.data.datasets.exclusions import EXCLUDED_FILE
from prometar.data.datasets.prepared import MANIFEST, SCHEMA, Manifest, ShardEntry, find_manifest
from prometar.data.preparation.check import read_and_verify
from prometar.data.preparation.download import ProgressCallback
from prometar.errors import InfrastructureError, UserError, WorkError
from prometar.io.files import resolve_path
from prometar.io.stores import masked, read_file, write_file

_GROUP_ROWS = 16  # rows per row group: reading one image reads its whole group


def prepare(
    name: str,
    root: Path | str | None,
    to: Path | str,
    *,
    shard_rows: int = 1024,
    progress: ProgressCallback = lambda done, total: None,
) -> tuple[Manifest, int]:
    """Write shards and manifest.json to the dataset's folder in the data root `to`.

    Excluded images are copied without being decoded, or left empty if they are missing. The copy has its own
    excluded.txt.

    For your own images (name `folder`), the dataset's folder is `to` itself. Each image is decoded before its
    shard is written. After a missing or corrupt image, the rest are only checked, and no manifest is written.

    Args:
        name, root: As for `open_dataset`.
        to: Folder or URI that pyarrow supports (s3://bucket/path, gs://...), outside the images' own folder.
        shard_rows: Images per shard.
        progress: Receives (finished shards, total shards).

    Returns:
        The manifest, and the number of shards that already existed.

    Raises:
        UserError: the dataset cannot be opened, or `to` lies in its folder or contains a different copy.
        WorkError: images are missing or corrupt (the message lists them), or `to` is not writable.
    """
    supported = (*BENCHMARKS, OWN_IMAGES)
    if name not in supported:
        raise UserError(f"The dataset '{name}' cannot be prepared. Use one of {', '.join(supported)}.")
    target = dataset_location(name, to if "://" in str(to) else resolve_path(to))
    path_or_uri = target.removeprefix("file://")
    if "://" not in path_or_uri and is_in_dataset_folder(Path(path_or_uri), name, root):
        raise UserError(f"{target} lies in the dataset's own folder. Choose another --to.")
    earlier = find_manifest(target)
    if earlier is not None and earlier.name != name:
        raise UserError(f"{masked(target)} contains a copy of '{earlier.name}'. Choose another --to.")
    dataset = open_dataset(name, root)
    rows = [(item, split) for split, items in dataset.splits.items() for item in items]
    chunks = [rows[k : k + shard_rows] for k in range(0, len(rows), shard_rows)]
    shards: list[ShardEntry] = []
    errors: list[str] = []
    num_existing = 0
    for k, chunk in enumerate(chunks):
        results = list(read_and_verify([item for item, _ in chunk], dataset.source, dataset.excluded))
        errors += [message for _, message in results if message]
        if not errors:
            data = _encode_shard(chunk, [image for image, _ in results])
            shard: ShardEntry = {"file": f"{k:05d}-{hashlib.sha256(data).hexdigest()[:16]}.parquet"}
            if earlier is not None and shard not in earlier.shards:
                raise UserError(
                    f"{masked(target)} contains a different copy of '{name}'. Delete it, or use another --to."
                )
            num_existing += not _write_if_changed(target, shard["file"], data)
            shards.append(shard)
        progress(k + 1, len(chunks))
    if errors:
        affected = f"{len(errors)} of {len(rows)} images of {name}"
        raise WorkError(
            f"{affected} are missing or corrupt. {' '.join(errors)} To prepare the others, list these images "
            f"in {EXCLUDED_FILE} (docs/data.md)."
        )
    manifest = Manifest(
        name=name,
        counts=dataset.counts,
        note=dataset.note,
        base_classes=dataset.base_classes,
        shards=tuple(shards),
    )
    if dataset.excluded or read_file(target, EXCLUDED_FILE):
        excluded = "".join(f"{path}\n" for path in sorted(dataset.excluded))
        _write_if_changed(target, EXCLUDED_FILE, excluded.encode())
    _write_if_changed(target, MANIFEST, manifest.model_dump_json(indent=1).encode())
    return manifest, num_existing


def _encode_shard(chunk: list[tuple[Item, str]], images: list[bytes]) -> bytes:
    rows = [
        {"path": item.path, "label": item.label, "classname": item.classname, "split": split, "image": image}
        for (item, split), image in zip(chunk, images, strict=True)
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_pylist(rows, schema=SCHEMA),
        sink,
        row_group_size=_GROUP_ROWS,
        # Images are already compressed, and statistics of their bytes would only enlarge the footer.
        compression={field.name: "NONE" if field.name == "image" else "ZSTD" for field in SCHEMA},
        use_dictionary=["classname", "split"],
        write_statistics=False,
        write_page_checksum=True,
    )
    return sink.getvalue().to_pybytes()


def _write_if_changed(target: str, file: str, data: bytes) -> bool:
    """Write a file unless it already has this content. Return True if it was written."""
    try:
        changed = read_file(target, file) != data  # a shard with the right name may be corrupt
        if changed:
            write_file(target, file, data)
    except InfrastructureError as error:
        raise WorkError(f"Cannot write to {masked(target)}. {error} Rerun this command to resume.") from None
    return changed
