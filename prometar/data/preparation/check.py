"""Read-only checks of the datasets in a data root, and of the images of one dataset."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
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
_GROUPS_PER_THREAD = 4  # groups per thread that are in memory at most, if the consumer of the images is slow


def list_datasets(root: Path | str | None = None) -> dict[str, Dataset | str | None]:
    """Open all built-in datasets that exist in a data root.

    Returns:
        For each built-in name, the dataset, or the error if it cannot be opened, or None if it is missing.

    Raises:
        UserError: `root` is not a folder.
        InfrastructureError: the store of `root` does not respond.
    """
    if root is not None and "://" in str(root):
        find_manifest(str(root))  # if the store does not respond, fail once, not once per dataset
    elif root is not None and not Path(root).is_dir():
        raise UserError(f"The data root {root} is not a folder. Pass --data-root DIR.")

    found = {name: _open_if_present(name, root) for name in BUILT_IN_NAMES}
    has_benchmarks = any(found[name] is not None for name in BENCHMARKS)
    if has_benchmarks and isinstance(found[OWN_IMAGES], str):
        found[OWN_IMAGES] = None  # the folders in `root` are benchmarks, not classes
    return found


def _open_if_present(name: str, root: Path | str | None) -> Dataset | str | None:
    """Return the dataset, or the error if it cannot be opened, or None if it is missing."""
    location = dataset_location(name, root or "")
    try:
        if "://" in location:
            exists = find_manifest(location) is not None
        else:
            exists = root is not None and Path(location).is_dir()
        if exists or name in RENDERED:
            return open_dataset(name, root)
    except PrometarError as error:
        return str(error)
    return None


def size_differences(name: str, num_classes: int, counts: dict[str, int]) -> tuple[str, ...]:
    """Return how a dataset differs from the published sizes, such as "train 600 of 2820".

    Args:
        name: Name of the dataset. Only benchmarks have published sizes.
        num_classes: Number of classes found.
        counts: Number of images found, by split.
    """
    if name not in BENCHMARKS:
        return ()
    published_sizes = {"classes": BENCHMARKS[name].num_classes, **BENCHMARKS[name].sizes}
    sizes = {"classes": num_classes, **counts}
    differences: list[str] = []
    for key, published in published_sizes.items():
        if sizes[key] != published:
            differences.append(f"{key} {sizes[key]} of {published}")
    return tuple(differences)


def check(name: str, root: Path | str | None = None) -> tuple[list[str], list[str], list[str]]:
    """Check the image list of a dataset, and decode every image.

    Args:
        name, root: As for `open_dataset`.

    Returns:
        Three lists.

        1. Errors in the image list, such as labels with two names.
        2. Errors of missing and corrupt images, one per image.
        3. A summary, followed by notes. Notes report differences from the published sizes, photos with EXIF
           rotation, and test images that are also training or validation images. The last note lists the
           class names.

    Raises:
        UserError: the dataset cannot be opened.
    """
    dataset = open_unverified(name, root)
    # An invalid list may contain an image twice.
    item_by_path = {item.path: item for item in dataset.without_excluded(dataset.items)}
    items = list(item_by_path.values())

    image_errors: list[str] = []
    rotated_paths: list[str] = []
    paths_by_content: dict[bytes, list[str]] = {}
    results = read_and_verify(items, dataset.source)
    for item, (image, error) in zip(items, results, strict=True):
        if error:
            image_errors.append(error)
            continue
        content_digest = hashlib.sha256(image).digest()
        paths_by_content.setdefault(content_digest, []).append(item.path)
        if has_exif_rotation(image):
            rotated_paths.append(item.path)

    notes = [
        *_list_notes(dataset, root),
        *_rotation_note(dataset, rotated_paths),
        *_duplicates_note(dataset, paths_by_content.values()),
    ]
    if dataset.excluded:
        notes.append(f"excluded: {abbreviated(sorted(dataset.excluded))}")
    if dataset.base_classes:
        notes.append(f"base classes: {abbreviated(dataset.base_classes)}")
    notes.append(f"class names: {abbreviated(dataset.classnames)}")
    summary = _summary(name, dataset, num_errors=len(image_errors))
    return list(image_list_errors(dataset)), image_errors, [summary, *notes]


def _summary(name: str, dataset: Dataset, num_errors: int) -> str:
    """Return the numbers of classes and images, and the number of missing and corrupt images."""
    sizes = ", ".join(f"{split} {count}" for split, count in dataset.counts.items())
    state = "all readable"
    if num_errors > 0:
        state = f"{num_errors} missing or corrupt"
    return f"{name}: {len(dataset.classnames)} classes, {sizes} images, {state}"


def _rotation_note(dataset: Dataset, paths: Sequence[str]) -> Iterator[str]:
    """Yield a note on photos with EXIF rotation, if there are any.

    Args:
        dataset: Dataset that contains the photos.
        paths: Paths of all photos with EXIF rotation.
    """
    if paths:
        treatment = "which is applied" if dataset.exif_rotation else "which is ignored, as in CoOp"
        yield f"{len(paths)} images have an EXIF rotation, {treatment}. The first is {paths[0]}"


def _duplicates_note(dataset: Dataset, groups: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield a note on test images that are also training or validation images, if there are any.

    Args:
        dataset: Dataset that contains the images.
        groups: Groups of paths. The files of a group have the same content.
    """
    test_paths = {item.path for item in dataset.test}
    duplicates: list[str] = []  # test images
    originals: list[str] = []  # for each group with duplicates, a training or validation image
    for group in groups:
        tested = [path for path in group if path in test_paths]
        not_tested = [path for path in group if path not in test_paths]
        if tested and not_tested:
            duplicates += tested
            originals.append(not_tested[0])
    if duplicates:
        yield (
            f"{len(duplicates)} test images are identical to training or validation images, so test "
            f"accuracies are too high. The first is {duplicates[0]}, identical to {originals[0]}"
        )


def _list_notes(dataset: Dataset, root: Path | str | None) -> Iterator[str]:
    """Yield notes on the image list: its differences from the published one, and classes without images."""
    benchmark = BENCHMARKS.get(dataset.name)
    classnames = {item.label: item.classname for item in dataset.items}
    differences = size_differences(dataset.name, len(classnames), dataset.counts)
    if differences:
        yield f"sizes differ from the published ones: {', '.join(differences)}"
    elif benchmark and benchmark.split_digest and isinstance(dataset.source, FolderSource):
        file = Path(dataset_location(benchmark.name, str(root)), benchmark.split_file)
        if file_digest(file, "sha256") != benchmark.split_digest:
            yield f"{file.name} differs from CoOp's split file, so results may differ from published ones"
    if dataset.note:
        yield dataset.note
    for split in ("train", "test"):
        labels = {item.label for item in dataset.splits[split]}
        missing = [name for label, name in classnames.items() if label not in labels]
        if labels and missing:
            yield f"{len(missing)} classes have no {split} images: {abbreviated(missing)}"


def file_digest(file: Path, algorithm: str) -> str:
    """Return the digest of a file, such as "md5:<hex>".

    Args:
        algorithm: Name of the algorithm in `hashlib`, such as "md5" or "sha256".
    """
    with file.open("rb") as stream:
        return f"{algorithm}:{hashlib.file_digest(stream, algorithm).hexdigest()}"


def read_and_verify(
    items: Sequence[Item], source: Source, excluded: Collection[str] = ()
) -> Iterator[tuple[bytes, str]]:
    """Read images on all CPUs, and verify that they can be decoded.

    Args:
        excluded: Paths of images that are not decoded. If one cannot be read, no error is reported.

    Yields:
        For each item in order, the encoded image and the error, which is "" if there is none. The image is
        b"" if it is corrupt or cannot be read.

    Raises:
        InfrastructureError: the disk with the image files, or its mount, fails.
    """
    num_threads = num_cpus()
    chunk_size = _GROUP_SIZE * _GROUPS_PER_THREAD * num_threads
    read_group = partial(_read_group, source=source, excluded=excluded)
    with ThreadPoolExecutor(num_threads) as pool:
        for chunk in _parts(items, chunk_size):
            groups = _parts(chunk, _GROUP_SIZE)
            for results in pool.map(read_group, groups):
                yield from results


def _parts(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Divide items into parts of `size` items. The last part may be smaller."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def unreadable_images(
    dataset: Dataset, items: Iterable[Item], *, on_start: Callable[[int], None] = lambda num_images: None
) -> dict[str, str]:
    """Decode the images that no earlier call has decoded. Return the errors of unreadable images by path.

    A file in the cache folder records the size and the modification time of each decoded image. An image that
    has changed since, or that was unreadable, is decoded again.

    Only image files are decoded. `prepare` has already decoded the images in Parquet files, and rendered
    images are never corrupt.

    Args:
        on_start: Called with the number of images to decode, unless this number is 0.
    """
    if not isinstance(dataset.source, FolderSource):
        return {}
    folder = Path(dataset.source.folder)
    folder_digest = hashlib.sha256(str(folder).encode()).hexdigest()
    record_path = cache_folder() / "decoded-images" / f"{folder_digest[:32]}.json"
    decoded_stamps = _read_record(record_path)

    stamps = {item.path: _stamp(folder / item.path) for item in items}
    to_decode: list[Item] = []
    for path, stamp in stamps.items():
        if stamp is None or stamp != decoded_stamps.get(path):
            to_decode.append(Item(path, label=0, classname=""))  # label and name are not used
    if not to_decode:
        return {}

    on_start(len(to_decode))
    errors: dict[str, str] = {}
    results = read_and_verify(to_decode, dataset.source)
    for item, (_, error) in zip(to_decode, results, strict=True):
        if error:
            errors[item.path] = error
        else:
            decoded_stamps[item.path] = stamps[item.path]
    with suppress(InfrastructureError):  # without the record, a later call decodes the images again
        write_atomically(record_path, json.dumps(decoded_stamps).encode())
    return errors


def _read_record(path: Path) -> dict[str, object]:
    """Return the `_stamp` of each decoded image by path, or {} if the record is missing or unreadable."""
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
    """Read and decode a group of images in a thread. Return what `read_and_verify` yields for them."""
    try:
        images = source.read_many([item.path for item in items])
        for image, item in zip(images, items, strict=True):
            if item.path not in excluded:
                decode(image, item.path)
    except PrometarError as error:
        if isinstance(error, InfrastructureError) and isinstance(source, FolderSource):
            raise  # a fault of the disk, not of the images
        if len(items) == 1:
            return [(b"", _image_error(items[0].path, error, excluded))]
        # Retry one by one, so that each image has its own error.
        results: list[tuple[bytes, str]] = []
        for item in items:
            results += _read_group([item], source, excluded)
        return results
    return [(image, "") for image in images]


def _image_error(path: str, error: PrometarError, excluded: Collection[str]) -> str:
    """Return an error message that contains the path of the image, or "" if the image is excluded."""
    if path in excluded:
        return ""
    message = str(error)
    return message if path in message else f"{path}: {message}"
