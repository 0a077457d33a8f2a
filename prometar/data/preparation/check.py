"""Read-only checks of the datasets in a data root, and of the images of one dataset."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from prometar.data.datasets.benchmarks import BENCHMARKS
from prometar.data.datasets.catalog import (
    BUILT_IN_NAMES,
    OWN_IMAGES,
    dataset_location,
    image_list_errors,
    open_dataset,
    open_unverified,
)
from prometar.data.datasets.dataset import Dataset, FolderSource, Item, Source, abbreviated
from prometar.data.datasets.prepared import find_manifest
from prometar.data.streaming.transforms import decode, has_exif_rotation
from prometar.embedded.datasets import RENDERED
from prometar.environment import num_cpus
from prometar.errors import InfrastructureError, PrometarError, UserError
from prometar.io.files import cache_folder, read_bytes, write_atomically

_GROUP_SIZE = 16  # images that a thread reads and decodes at a time


def list_datasets(root: Path | str | None = None) -> dict[str, Dataset | str | None]:
    """Map each built-in name to the dataset, the error if it cannot be opened, or None if it is missing.

    Raises:
        UserError: `root` is not a folder.
        InfrastructureError: the store of `root` does not respond.
    """
    if root is not None and "://" in str(root):
        find_manifest(str(root))  # if the store does not respond, fail once, not once per dataset
    elif root is not None and not Path(root).is_dir():
        raise UserError(f"The data root {root} is not a folder. Pass --data-root DIR.")
    found = {name: _open_if_present(name, root) for name in BUILT_IN_NAMES}
    if isinstance(found[OWN_IMAGES], str) and any(found[name] is not None for name in BENCHMARKS):
        found[OWN_IMAGES] = None  # `root` contains benchmarks, not class folders
    return found


def _open_if_present(name: str, root: Path | str | None) -> Dataset | str | None:
    location = dataset_location(name, root or "")
    try:
        if "://" in location:
            exists = find_manifest(location) is not None
        else:
            exists = root is not None and Path(location).is_dir()
        return open_dataset(name, root) if exists or name in RENDERED else None
    except PrometarError as error:
        return str(error)


def size_differences(name: str, num_classes: int, counts: dict[str, int]) -> tuple[str, ...]:
    """Describe differences from the published sizes, such as "train 600 of 2820". Return () if none exist."""
    if name not in BENCHMARKS:
        return ()
    published = {"classes": BENCHMARKS[name].num_classes, **BENCHMARKS[name].sizes}
    found = {"classes": num_classes, **counts}
    return tuple(f"{key} {found[key]} of {size}" for key, size in published.items() if found[key] != size)


def check(name: str, root: Path | str | None = None) -> tuple[list[str], list[str], list[str]]:
    """Check the image list of a dataset, and decode every image.

    Args:
        name, root: As for `open_dataset`.

    Returns:
        Three lists: errors in the image list, such as labels with two names; one error per missing or corrupt
        image; and a summary followed by notes, such as differences from the published sizes, photos with EXIF
        rotation, and test images that are also training or validation images.

    Raises:
        UserError: the dataset cannot be opened.
    """
    dataset = open_unverified(name, root)
    used = dataset.without_excluded(dataset.items)
    items = list({item.path: item for item in used}.values())  # each image once
    image_errors: list[str] = []
    rotated_paths: list[str] = []
    paths_by_content: dict[bytes, list[str]] = {}
    for item, (image, message) in zip(items, read_and_verify(items, dataset.source), strict=True):
        if message:
            image_errors.append(message)
            continue
        paths_by_content.setdefault(hashlib.sha256(image).digest(), []).append(item.path)
        if has_exif_rotation(image):
            rotated_paths.append(item.path)
    sizes = ", ".join(f"{split} {count}" for split, count in dataset.counts.items())
    state = f"{len(image_errors)} missing or corrupt" if image_errors else "all readable"
    summary = f"{name}: {len(dataset.classnames)} classes, {sizes} images, {state}"
    notes = [
        *_notes(dataset, root),
        *_rotation_note(dataset, rotated_paths),
        *_duplicates_note(dataset, paths_by_content.values()),
        *([f"excluded: {abbreviated(sorted(dataset.excluded))}"] if dataset.excluded else []),
        *([f"base classes: {abbreviated(dataset.base_classes)}"] if dataset.base_classes else []),
        f"class names: {abbreviated(dataset.classnames)}",
    ]
    return list(image_list_errors(dataset)), image_errors, [summary, *notes]


def _rotation_note(dataset: Dataset, paths: Sequence[str]) -> Iterator[str]:
    treatment = "which is applied" if dataset.exif_rotation else "which is ignored, as in CoOp"
    if paths:
        yield f"{len(paths)} images have an EXIF rotation, {treatment}. The first is {paths[0]}"


def _duplicates_note(dataset: Dataset, groups: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield a note on test images that are also used for training. `groups`: paths of identical files."""
    test_paths = {item.path for item in dataset.test}
    pairs: list[tuple[str, str]] = []
    for group in groups:
        others = [path for path in group if path not in test_paths]
        if others:
            pairs += [(path, others[0]) for path in group if path in test_paths]
    if pairs:
        test_path, other = pairs[0]
        yield (
            f"{len(pairs)} test images are identical to training or validation images, so test accuracies "
            f"are too high. The first is {test_path}, identical to {other}"
        )


def _notes(dataset: Dataset, root: Path | str | None) -> Iterator[str]:
    benchmark = BENCHMARKS.get(dataset.name)
    names = {item.label: item.classname for item in dataset.items}
    if differences := size_differences(dataset.name, len(names), dataset.counts):
        yield f"sizes differ from the published ones: {', '.join(differences)}"
    elif benchmark and benchmark.split_digest and isinstance(dataset.source, FolderSource):
        file = Path(dataset_location(benchmark.name, str(root)), benchmark.split_file)
        if file_digest(file, "sha256") != benchmark.split_digest:
            yield f"{file.name} differs from CoOp's split file, so results may differ from published ones"
    if dataset.note:
        yield dataset.note
    for split in ("train", "test"):
        present = {item.label for item in dataset.splits[split]}
        absent = [name for label, name in names.items() if label not in present]
        if present and absent:
            yield f"{len(absent)} classes have no {split} images: {abbreviated(absent)}"


def file_digest(file: Path, algorithm: str) -> str:
    """Return the digest of a file, such as "md5:<hex>"."""
    with file.open("rb") as stream:
        return f"{algorithm}:{hashlib.file_digest(stream, algorithm).hexdigest()}"


def read_and_verify(
    items: Sequence[Item], source: Source, excluded: Collection[str] = ()
) -> Iterator[tuple[bytes, str]]:
    """Read images on all CPUs, and verify that they can be decoded.

    Args:
        excluded: Paths of images that are not decoded. If one cannot be read, the result is b"" and "".

    Yields:
        For each item in order, the encoded image and "", or b"" and the error.
    """
    workers = num_cpus()
    chunk_size = _GROUP_SIZE * workers * 4  # limits the images in memory if the consumer is slow
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(items), chunk_size):
            chunk = items[start : start + chunk_size]
            groups = [chunk[k : k + _GROUP_SIZE] for k in range(0, len(chunk), _GROUP_SIZE)]
            for results in pool.map(lambda group: _read_group(group, source, excluded), groups):
                yield from results


def unreadable_images(
    dataset: Dataset, items: Iterable[Item], *, on_start: Callable[[int], None] = lambda num_images: None
) -> dict[str, str]:
    """Decode images that have not been decoded before. Return errors by path.

    A file in the cache folder records the size and the modification time of each decoded image. Only image
    files are decoded: `prepare` has decoded the images in Parquet files, and rendered images are not corrupt.

    Args:
        on_start: Called with the number of images to decode, unless it is 0.
    """
    if not isinstance(dataset.source, FolderSource):
        return {}
    folder = Path(dataset.source.folder)
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:32]
    record_path = cache_folder() / "decoded-images" / f"{name}.json"
    decoded = _read_record(record_path)
    stamps = {item.path: _stamp(folder / item.path) for item in items}
    unknown = [
        Item(path, 0, "") for path, stamp in stamps.items() if stamp is None or decoded.get(path) != stamp
    ]
    if not unknown:
        return {}
    on_start(len(unknown))
    errors: dict[str, str] = {}
    for item, (_, message) in zip(unknown, read_and_verify(unknown, dataset.source), strict=True):
        if message:
            errors[item.path] = message
        else:
            decoded[item.path] = stamps[item.path]
    with suppress(InfrastructureError):  # without the record, the images are decoded again
        write_atomically(record_path, json.dumps(decoded).encode())
    return errors


def _read_record(path: Path) -> dict[str, object]:
    """Return the record of decoded images, or {} if it is missing or unreadable."""
    try:
        record = json.loads(read_bytes(path))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _stamp(file: Path) -> list[int] | None:
    """Return the size in bytes and the modification time in nanoseconds, or None if there is no such file."""
    try:
        status = file.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _read_group(items: Sequence[Item], source: Source, excluded: Collection[str]) -> list[tuple[bytes, str]]:
    try:
        images = source.read_many([item.path for item in items])
        for image, item in zip(images, items, strict=True):
            if item.path not in excluded:
                decode(image, item.path)
    except PrometarError as error:
        if isinstance(error, InfrastructureError) and isinstance(source, FolderSource):
            raise  # a fault of the disk, not of the images
        if len(items) > 1:  # retry one by one, so that each image has its own error
            results: list[tuple[bytes, str]] = []
            for item in items:
                results += _read_group([item], source, excluded)
            return results
        path = items[0].path
        if path in excluded:
            return [(b"", "")]
        message = str(error)
        return [(b"", message if path in message else f"{path}: {message}")]
    return [(image, "") for image in images]
