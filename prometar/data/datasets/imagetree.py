"""Class folders of images, and custom datasets of them: in train/, val/ and test/ or split by a rule."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from prometar.data.datasets.benchmarks import TEMPLATE
from prometar.data.datasets.dataset import SPLITS, Dataset, FolderSource, Item, Items, same_class
from prometar.errors import UserError

FOLDER, TITLE = "folder", "your own images"
# those that transforms.FORMATS can read
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
VAL_PERCENT, TEST_PERCENT, SPLIT_SEED = 20, 30, 0
MIN_TO_SPLIT = 3  # one image per split
SPLIT_NOTE = (
    f"split here, as the folder has no train/ and test/: of each class {TEST_PERCENT} % test, "
    f"{VAL_PERCENT} % val, the rest train (by hash of the path, seed {SPLIT_SEED})"
)
ALLOWED = ({"train", "val", "test"}, {"train", "test"}, {"test"})


def read_tree(folder: Path) -> Dataset:
    """Return the images of DIR/train|val|test/<class>/<image> or DIR/<class>/<image>. Folders name classes.

    With split folders, `val` may be missing (a search then holds out images of `train`), and `test` alone is
    a dataset to evaluate on. All splits have the same classes.

    Raises:
        UserError: fewer than two classes, an empty class, or splits that do not belong together.
    """
    folders = class_folders(folder)
    splits = [split for split in SPLITS if split in folders and entries(folder / split)[0]]
    if splits and (set(splits) != set(folders) or set(splits) not in ALLOWED):
        raise UserError(
            f"{folder} has the folders {', '.join(folders)}: expected train and test with or without val, "
            "test alone, or class folders alone, each with images"
        )
    names = class_folders(*(folder / split for split in splits)) if splits else folders
    if len(names) < 2:
        raise UserError(f"{folder} has one class folder ({names[0]}): at least two are needed")
    if same := same_class(names):
        raise UserError(f"{folder}: the folders '{same[0]}' and '{same[1]}' name the same class: rename one")
    note = _left_out(folder)
    if splits:
        items = {
            split: labelled_images(folder, [f"{split}/{name}" for name in names], names) for split in splits
        }
    else:
        items, note = _split(folder, names), "; ".join(filter(None, (SPLIT_NOTE, note)))
    train, val, test = (items.get(split, ()) for split in SPLITS)
    source, origin = FolderSource(str(folder)), f"folder {folder}"
    return Dataset(FOLDER, TITLE, train, val, test, source, TEMPLATE, origin, note)


def _split(folder: Path, names: Sequence[str]) -> dict[str, Items]:
    split: dict[str, list[Item]] = {name: [] for name in SPLITS}
    for label, name in enumerate(names):
        paths = [f"{name}/{file}" for file in image_files(folder / name)]
        if len(paths) < MIN_TO_SPLIT:
            raise UserError(
                f"{folder / name} has {len(paths)} images: at least {MIN_TO_SPLIT} are needed to split "
                "them into train, val and test. Add images, or make the splits yourself."
            )
        for part, chosen in split_paths(paths).items():
            split[part] += [Item(path, label, name) for path in chosen]
    return {part: tuple(items) for part, items in split.items()}


def split_paths(paths: Sequence[str]) -> dict[str, list[str]]:
    """Split the images of one class (at least three) into three parts, whatever their order.

    Ranked by the hash of their paths, the first floor(0.3 n) are `test`, the next floor(0.2 n) `val` (at
    least one each), the rest `train`. An added image moves few others.
    """

    def rank(path: str) -> bytes:
        return hashlib.sha256(f"{SPLIT_SEED}/{path}".encode("utf-8", "surrogateescape")).digest()

    ranked = sorted(paths, key=rank)
    test = max(1, len(paths) * TEST_PERCENT // 100)
    val = max(1, len(paths) * VAL_PERCENT // 100)
    parts = {"train": ranked[test + val :], "val": ranked[test : test + val], "test": ranked[:test]}
    return {split: sorted(part) for split, part in parts.items()}


def _left_out(folder: Path) -> str:
    """Return a note on the files that are not images by their ending."""
    files = (
        os.path.relpath(os.path.join(place, name), folder)
        for place, _, names in os.walk(folder)
        for name in names
        if not name.lower().endswith(ENDINGS)
    )
    found = sorted(file for file in files if "/." not in f"/{file}")  # hidden files and folders
    return f"{len(found)} files are no images and are left out, such as {found[0]}" if found else ""


def entries(folder: Path) -> tuple[list[str], list[str]]:
    """Return the sorted names of the folders and of the files in `folder`, without hidden ones.

    Raises:
        UserError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as found:
            visible = sorted((entry.name, entry.is_dir()) for entry in found if entry.name[0] != ".")
    except OSError as error:
        raise UserError(f"cannot list {folder} ({error.strerror})") from None
    return [name for name, is_dir in visible if is_dir], [name for name, is_dir in visible if not is_dir]


def class_folders(*folders: Path) -> list[str]:
    """Return the sorted names of the class folders, which all `folders` must share.

    Raises:
        UserError: there are none, or a folder has other ones.
    """
    names = [entries(folder)[0] for folder in folders]
    for folder, found in zip(folders, names, strict=True):
        if not found:
            raise UserError(f"{folder} has no class folders: expected a folder of images per class")
        if differing := sorted(set(found) ^ set(names[0])):
            raise UserError(
                f"{folders[0]} and {folder} hold different classes, such as '{differing[0]}': every split "
                "needs a folder for every class"
            )
    return names[0]


def image_files(folder: Path) -> list[str]:
    """Return the sorted names of the images in a class folder, selected by their ending.

    Raises:
        UserError: it has none, or contains folders.
    """
    folders, files = entries(folder)
    if folders:
        raise UserError(f"{folder / folders[0]} is a folder in a class folder: images must lie right in it")
    images = [file for file in files if file.lower().endswith(ENDINGS)]
    if not images:
        raise UserError(f"class folder {folder} has no images ({', '.join(ENDINGS)})")
    return images


def labelled_images(images: Path, folders: Iterable[str], names: Iterable[str]) -> Items:
    """Return the images of class folders below `images`: the k-th folder has the label k and the k-th name.

    Raises:
        UserError: see `image_files`.
    """
    return tuple(
        Item(f"{folder}/{file}", label, name)
        for label, (folder, name) in enumerate(zip(folders, names, strict=True))
        for file in image_files(images / folder)
    )
