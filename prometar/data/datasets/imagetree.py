"""Datasets of image folders, one per class.

Without the split folders train/ and test/, images are split automatically.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from prometar.data.datasets.benchmarks import TEMPLATE
from prometar.data.datasets.dataset import (
    SPLITS,
    Dataset,
    FolderSource,
    Item,
    Items,
    find_duplicate_names,
    normalize_name,
)
from prometar.data.datasets.exclusions import EXCLUDED_FILE
from prometar.errors import UserError
from prometar.io.files import file_size, read_text

OWN_IMAGES = "folder"
"""Name of the user's own images for `--dataset`."""
OWN_IMAGES_TITLE = "your own images"
"""Title of the user's own images in tables."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""Suffixes of the formats in `transforms.FORMATS`."""
HEIC_SUFFIXES = (".heic", ".heif")
"""Suffixes of photos in HEIC format, which many phones take and Pillow cannot decode."""

VAL_PERCENT = 20
TEST_PERCENT = 30
SPLIT_SEED = 0
MIN_TO_SPLIT = 3  # one image per split
SPLIT_NOTE = (
    f"automatic split, because the folder has no train/ or test/: {TEST_PERCENT}% of each class are test "
    f"images, {VAL_PERCENT}% val, the rest train (by hash of the path, seed {SPLIT_SEED})"
)

ALLOWED_SPLITS = ({"train", "val", "test"}, {"train", "test"}, {"test"})
SPLIT_OF_OTHER_NAME = {
    "training": "train",
    "train": "train",
    "validation": "val",
    "valid": "val",
    "val": "val",
    "testing": "test",
    "test": "test",
}
"""Name of a split, by the name of its folder in other layouts (in lower case)."""

BASE_CLASSES_FILE = "base_classes.txt"
MIN_BASE_OR_NEW = 2  # because accuracy on a single class is always 100%


def read_tree(folder: Path) -> Dataset:
    """Read the images DIR/train|val|test/<class>/<image> or DIR/<class>/<image> as a dataset.

    DIR is `folder`, and <class> is the name of a class. If folders called train, val or test have no
    subfolders, they are classes. All splits must have the same classes.

    If `val` is missing, a search holds out images of `train`. For an evaluation, `test` suffices.

    The file DIR/base_classes.txt lists the base classes, one per line. If it is missing, the first half of
    the classes are base classes.

    Raises:
        UserError: there are fewer than two classes, two folders for one class, or unexpected folders. A class
            has no images, too few images to split, or subfolders. Splits have different classes.
            base_classes.txt is invalid.
    """
    folders = class_folders(folder)
    _reject_other_layouts(folder, folders)
    splits = _find_splits(folder, folders)
    names = folders
    if splits:
        names = class_folders(*[folder / split for split in splits])
    _require_different_classes(folder, names)

    note = _skipped_note(folder, splits)
    items: dict[str, Items] = {}
    if splits:
        for split in splits:
            paths = [f"{split}/{name}" for name in names]
            items[split] = labeled_images(folder, paths, names)
    else:
        items = _split_automatically(folder, names)
        note = f"{SPLIT_NOTE}; {note}" if note else SPLIT_NOTE
    return Dataset(
        OWN_IMAGES,
        OWN_IMAGES_TITLE,
        train=items.get("train", ()),
        val=items.get("val", ()),
        test=items.get("test", ()),
        source=FolderSource(str(folder)),
        template=TEMPLATE,
        items_origin=f"folder {folder}",
        note=note,
        base_classes=_read_base_classes(folder / BASE_CLASSES_FILE, names),
    )


def _find_splits(folder: Path, folders: Sequence[str]) -> list[str]:
    """Return the names of the split folders in `folder`, or [] if `folder` contains the class folders.

    Args:
        folders: Names of all folders in `folder`.

    Raises:
        UserError: there are other folders beside the split folders, or a required split is missing.
    """
    splits = [split for split in SPLITS if split in folders and _has_subfolders(folder / split)]
    if not splits:
        return []
    has_other_folders = set(splits) != set(folders)
    if has_other_folders or set(splits) not in ALLOWED_SPLITS:
        raise UserError(
            f"{folder} has the folders {', '.join(folders)}. Expected train and test (val is optional), "
            "only test, or only class folders. Each split needs class folders."
        )
    return splits


def _require_different_classes(folder: Path, names: Sequence[str]) -> None:
    """Require at least two classes, whose names CLIP can tell apart.

    Args:
        folder: Image folder, for messages.
        names: Names of the class folders, at least one.

    Raises:
        UserError: there is only one class, or two names are the same to CLIP.
    """
    if len(names) < 2:
        raise UserError(f"{folder} has only one class folder ({names[0]}). Add at least one more.")
    duplicates = find_duplicate_names(names)
    if duplicates is not None:
        first, second = duplicates
        raise UserError(f"{folder}: the folders '{first}' and '{second}' name the same class. Rename one.")


def _read_base_classes(file: Path, names: Sequence[str]) -> tuple[str, ...]:
    """Return the classes listed in base_classes.txt, or () if there is no such file.

    Args:
        names: Names of all classes.

    Raises:
        UserError: a line is not a class or is repeated, or there are fewer than two base or new classes.
    """
    if file_size(file) is None:
        return ()
    name_by_normalized = {normalize_name(name): name for name in names}
    base: list[str] = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        text = line.strip()
        if not text:
            continue
        name = name_by_normalized.get(normalize_name(text))
        if name is None:
            raise UserError(f"{file}, line {number}: {text!a:.80} is not a class folder.")
        if name in base:
            raise UserError(f"{file}, line {number}: {name} is listed twice. Delete one of the lines.")
        base.append(name)
    num_new = len(names) - len(base)
    if len(base) < MIN_BASE_OR_NEW or num_new < MIN_BASE_OR_NEW:
        raise UserError(
            f"{file} lists {len(base)} base classes, so {num_new} classes are new. "
            f"List at least {MIN_BASE_OR_NEW}, and omit at least {MIN_BASE_OR_NEW}."
        )
    return tuple(base)


def _reject_other_layouts(folder: Path, folders: Sequence[str]) -> None:
    """Raise a UserError if splits have other names, or if all folders lie in another folder.

    Args:
        folders: Names of the folders in `folder`.
    """
    with_subfolders = [name for name in folders if _has_subfolders(folder / name)]
    for name in with_subfolders:
        split = SPLIT_OF_OTHER_NAME.get(name.lower(), name)
        if split not in folders:
            raise UserError(f"{folder} has the folder {name}. Rename it to {split}.")

    is_only_folder = len(folders) == 1
    for name in with_subfolders:
        if is_only_folder and name not in SPLITS:
            inner = folder / name
            raise UserError(f"{folder} contains only the folder {inner}. Pass --data-root {inner}.")


def _has_subfolders(folder: Path) -> bool:
    """Return True if `folder` contains folders that are not hidden."""
    folders, _ = list_visible(folder)
    return bool(folders)


def _split_automatically(folder: Path, names: Sequence[str]) -> dict[str, Items]:
    """Return train, val and test images from the class folders `names`.

    Raises:
        UserError: a class has fewer than `MIN_TO_SPLIT` images.
    """
    splits: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for label, name in enumerate(names):
        paths = [f"{name}/{file}" for file in image_files(folder / name)]
        if len(paths) < MIN_TO_SPLIT:
            raise UserError(
                f"{folder / name} has {len(paths)} images. An automatic split into train, val and test needs "
                f"at least {MIN_TO_SPLIT}. Add images, or create the split folders yourself."
            )
        for split, chosen in split_paths(paths).items():
            splits[split] += [Item(path, label, name) for path in chosen]
    return {split: tuple(items) for split, items in splits.items()}


def split_paths(paths: Sequence[str]) -> dict[str, list[str]]:
    """Split the images of one class into train, val and test. Return the sorted paths of each split.

    Images are ranked by the hash of their paths. Of n images, the first floor(0.3 n) are `test` and the next
    floor(0.2 n) are `val`, at least one image each. The rest are `train`. The order of `paths` has no effect.
    If an image is added, few other images change their split.

    Args:
        paths: Paths of at least `MIN_TO_SPLIT` images.
    """

    def rank(path: str) -> bytes:
        return hashlib.sha256(f"{SPLIT_SEED}/{path}".encode("utf-8", "surrogateescape")).digest()

    num_test = max(1, len(paths) * TEST_PERCENT // 100)
    num_val = max(1, len(paths) * VAL_PERCENT // 100)
    ranked = sorted(paths, key=rank)
    not_test = ranked[num_test:]
    return {
        "train": sorted(not_test[num_val:]),
        "val": sorted(not_test[:num_val]),
        "test": sorted(ranked[:num_test]),
    }


def _skipped_note(folder: Path, splits: Sequence[str]) -> str:
    """Return a note on files that are skipped because of their suffix or folder, or "" if there are none.

    Args:
        splits: Names of the split folders in `folder`. Empty if `folder` contains the class folders.
    """
    files: list[str] = []
    for parent, _, names in os.walk(folder):
        files += [os.path.relpath(os.path.join(parent, name), folder) for name in names]

    image_depth = 2 if splits else 1  # number of folders above an image
    heic_photos: list[str] = []
    other_files: list[str] = []
    misplaced_images: list[str] = []
    for file in sorted(files):
        is_hidden = "/." in f"/{file}"  # the name of the file or of a folder above it starts with a dot
        if is_hidden or file in (BASE_CLASSES_FILE, EXCLUDED_FILE):
            continue
        if file.lower().endswith(HEIC_SUFFIXES):
            heic_photos.append(file)
        elif not file.lower().endswith(SUFFIXES):
            other_files.append(file)
        elif file.count("/") < image_depth:
            misplaced_images.append(file)

    skipped = {
        "photos in HEIC format are skipped (convert them to JPEG)": heic_photos,
        "files without an image suffix are skipped": other_files,
        "images outside the class folders are skipped": misplaced_images,
    }
    notes = [f"{len(found)} {kind}, such as {found[0]}" for kind, found in skipped.items() if found]
    return "; ".join(notes)


def list_visible(folder: Path) -> tuple[list[str], list[str]]:
    """Return two sorted lists: the names of the subfolders and of the files in `folder`, without hidden ones.

    Raises:
        UserError: `folder` cannot be listed.
    """
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                else:
                    files.append(entry.name)
    except OSError as error:
        raise UserError(f"Cannot list {folder} ({error.strerror}).") from None
    return sorted(folders), sorted(files)


def class_folders(*folders: Path) -> list[str]:
    """Return the sorted names of the class folders, which must be the same in all `folders`.

    Raises:
        UserError: one of `folders` has no class folders, or two of them have different class folders.
    """
    first_folder = folders[0]
    first_names, _ = list_visible(first_folder)
    for folder in folders:
        names, _ = list_visible(folder)
        if not names:
            raise UserError(f"{folder} has no class folders. Put each class's images into its own folder.")
        differing = sorted(set(names) ^ set(first_names))
        if differing:
            raise UserError(
                f"{first_folder} and {folder} have different classes, such as '{differing[0]}'. Every split "
                "needs a folder for every class."
            )
    return first_names


def image_files(folder: Path) -> list[str]:
    """Return the sorted names of the images in a class folder, selected by suffix.

    Raises:
        UserError: the folder has no images, or contains folders.
    """
    folders, files = list_visible(folder)
    if folders:
        raise UserError(f"Class folder {folder} contains the folder {folders[0]}. Move images one level up.")
    images = [file for file in files if file.lower().endswith(SUFFIXES)]
    if not images and any(file.lower().endswith(HEIC_SUFFIXES) for file in files):
        raise UserError(f"Class folder {folder} has only photos in HEIC format. Convert them to JPEG.")
    if not images:
        raise UserError(f"Class folder {folder} has no images ({', '.join(SUFFIXES)}).")
    return images


def labeled_images(root: Path, folders: Iterable[str], names: Iterable[str]) -> Items:
    """Return the images of class folders. The images in `folders[k]` have the label k.

    Args:
        root: Image folder.
        folders: Class folders, relative to `root`.
        names: Class name of each folder.

    Raises:
        UserError: a class folder has no images, or contains folders.
    """
    items: list[Item] = []
    for label, (folder, name) in enumerate(zip(folders, names, strict=True)):
        items += [Item(f"{folder}/{file}", label, name) for file in image_files(root / folder)]
    return tuple(items)
