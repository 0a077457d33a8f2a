"""Write a prepared copy of a dataset: Parquet shards and a manifest, for sequential and remote reading.

The name of a shard contains a hash of its content. A rerun decodes every image again, but writes a shard only
if it is missing or corrupt. The manifest is written last, so its presence marks a complete copy.
"""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from prometar.data.datasets.benchmarks import BENCHMARKS
from prometar.data.datasets.catalog import OWN_IMAGES, dataset_location, is_in_dataset_folder, open_dataset
from prometar.data.datasets.dataset import Dataset, Item
from prometar.data.datasets.exclusions import EXCLUDED_FILE
from prometar.data.datasets.prepared import MANIFEST, SCHEMA, Manifest, ShardEntry, find_manifest
from prometar.data.preparation.check import read_and_verify
from prometar.data.preparation.download import ProgressCallback
from prometar.errors import InfrastructureError, UserError, WorkError
from prometar.io.files import resolve_path
from prometar.io.stores import masked, read_file, write_file

_GROUP_ROWS = 16  # rows per row group. Reading one image reads its whole row group

Row = tuple[Item, str]
"""Image and the name of its split."""


def prepare(
    name: str,
    root: Path | str | None,
    to: Path | str,
    *,
    shard_rows: int = 1024,
    progress: ProgressCallback = lambda done, total: None,
) -> tuple[Manifest, int]:
    """Write shards and manifest.json to the dataset's folder in the data root `to`.

    For your own images (name `folder`), the dataset's folder is `to` itself.

    Each image is decoded before its shard is written. After a missing or corrupt image, the remaining images
    are only checked, and no manifest is written. Excluded images are copied without being decoded. If an
    excluded image is missing, its content in the copy is empty. The copy has its own excluded.txt.

    Args:
        name, root: As for `open_dataset`.
        to: Folder outside the dataset's folder, or URI that pyarrow supports (s3://bucket/path, gs://...).
        shard_rows: Images per shard. Default: 1024.
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
    to_is_uri = "://" in str(to)
    target = dataset_location(name, to if to_is_uri else resolve_path(to))
    path_or_uri = target.removeprefix("file://")
    is_local = "://" not in path_or_uri
    if is_local and is_in_dataset_folder(Path(path_or_uri), name, root):
        raise UserError(f"{target} lies in the dataset's own folder. Choose another --to.")
    earlier = find_manifest(target)
    if earlier is not None and earlier.name != name:
        raise UserError(f"{masked(target)} contains a copy of '{earlier.name}'. Choose another --to.")

    dataset = open_dataset(name, root)
    shards, num_existing = _write_shards(dataset, target, earlier, shard_rows, progress)
    manifest = Manifest(
        name=name,
        counts=dataset.counts,
        note=dataset.note,
        base_classes=dataset.base_classes,
        shards=tuple(shards),
    )
    if dataset.excluded or read_file(target, EXCLUDED_FILE):
        excluded_text = "".join(f"{path}\n" for path in sorted(dataset.excluded))
        _write_if_changed(target, EXCLUDED_FILE, excluded_text.encode())
    _write_if_changed(target, MANIFEST, manifest.model_dump_json(indent=1).encode())
    return manifest, num_existing


def _write_shards(
    dataset: Dataset, target: str, earlier: Manifest | None, shard_rows: int, progress: ProgressCallback
) -> tuple[list[ShardEntry], int]:
    """Write the shards of a dataset to the folder or URI `target`.

    Args:
        earlier: Manifest in `target`, or None if there is none.

    Returns:
        The entries of all shards, and the number of shards that already existed.

    Raises:
        UserError: `earlier` lists different shards.
        WorkError: images are missing or corrupt (the message lists them), or `target` is not writable.
    """
    rows: list[Row] = []
    for split, items in dataset.splits.items():
        rows += [(item, split) for item in items]
    chunks = [rows[start : start + shard_rows] for start in range(0, len(rows), shard_rows)]
    shards: list[ShardEntry] = []
    errors: list[str] = []
    num_existing = 0
    for number, chunk in enumerate(chunks):
        images: list[bytes] = []
        items = [item for item, _ in chunk]
        for image, error in read_and_verify(items, dataset.source, dataset.excluded):
            images.append(image)
            if error:
                errors.append(error)
        if not errors:
            content = _encode_shard(chunk, images)
            content_hash = hashlib.sha256(content).hexdigest()
            shard: ShardEntry = {"file": f"{number:05d}-{content_hash[:16]}.parquet"}
            if earlier is not None and shard not in earlier.shards:
                raise UserError(
                    f"{masked(target)} contains a different copy of '{dataset.name}'. Delete it, or use "
                    "another --to."
                )
            if not _write_if_changed(target, shard["file"], content):
                num_existing += 1
            shards.append(shard)
        progress(number + 1, len(chunks))
    if errors:
        affected = f"{len(errors)} of {len(rows)} images of {dataset.name}"
        raise WorkError(
            f"{affected} are missing or corrupt. {' '.join(errors)} To prepare the others, list these images "
            f"in {EXCLUDED_FILE} (docs/data.md)."
        )
    return shards, num_existing


def _encode_shard(rows: list[Row], images: list[bytes]) -> bytes:
    """Return the content of a Parquet file with these rows and their encoded images."""
    records: list[dict[str, object]] = []
    for (item, split), image in zip(rows, images, strict=True):
        records.append(
            {
                "path": item.path,
                "label": item.label,
                "classname": item.classname,
                "split": split,
                "image": image,
            }
        )
    compression = {field.name: "ZSTD" for field in SCHEMA}
    compression["image"] = "NONE"  # images are already compressed
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_pylist(records, schema=SCHEMA),
        sink,
        row_group_size=_GROUP_ROWS,
        compression=compression,
        use_dictionary=["classname", "split"],
        # Statistics of the images' bytes would only enlarge the footer.
        write_statistics=False,
        write_page_checksum=True,
    )
    return sink.getvalue().to_pybytes()


def _write_if_changed(target: str, file: str, data: bytes) -> bool:
    """Write a file unless it already has this content. Return True if it was written."""
    try:
        # The content is compared, because a shard with the right name may be corrupt.
        has_changed = read_file(target, file) != data
        if has_changed:
            write_file(target, file, data)
    except InfrastructureError as error:
        raise WorkError(f"Cannot write to {masked(target)}. {error} Rerun this command to resume.") from None
    return has_changed
