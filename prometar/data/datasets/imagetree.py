"""Any tree of image folders: a folder a class, in train/, val/ and test/ or to be split by a stated rule."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from prometar.data.datasets.dataset import Item, same_class
from prometar.data.datasets.listing import (
    SPLITS,
    Items,
    Listing,
    class_folders,
    entries,
    image_files,
    labelled_images,
)
from prometar.errors import UserError

VAL_PERCENT, TEST_PERCENT, SPLIT_SEED = 20, 30, 0
MIN_TO_SPLIT = 3  # one image a split
SPLIT_NOTE = (
    f"split here, as the folder has no train/ and test/: of each class {TEST_PERCENT} % test, "
    f"{VAL_PERCENT} % val, the rest train (by hash of the path, seed {SPLIT_SEED})"
)


def read_tree(folder: Path) -> Listing:
    """The images of DIR/train|val|test/<class>/<image>, or DIR/<class>/<image>; folders name classes.

    With split folders, `train` and `test` belong together, `val` may be missing (a search then holds images
    of `train` out), and `test` alone is a set to evaluate on. All splits have the same classes.

    Raises:
        UserError: no class folder, one class, an empty class, splits that do not belong together.
    """
    folders, files = entries(folder)
    splits = [split for split in SPLITS if split in folders and entries(folder / split)[0]]
    if not splits:
        return _read_classes(folder, files)
    others = sorted(set(folders) - set(splits))
    if others:
        raise UserError(
            f"{folder} has {' and '.join(f'{s}/' for s in splits)}, and {folder / others[0]} is no split "
            f"with class folders: a tree of splits has {', '.join(SPLITS)} and nothing else"
        )
    if "train" in splits and "test" not in splits:
        raise UserError(f"{folder} has train/ but no test/: add it, or have DIR/<class>/ split here")
    if "val" in splits and "train" not in splits:
        raise UserError(f"{folder} has val/ but no train/: add it, or rename val/ to test/")
    classes = {split: class_folders(folder / split) for split in splits}
    _require_same(folder, classes)
    names = _named(folder, classes[splits[0]])
    items = {split: labelled_images(folder, [f"{split}/{name}" for name in names], names) for split in splits}
    return Listing(folder, items, f"folder {folder}", _left_out(folder, files, items))


def _read_classes(folder: Path, files: list[str]) -> Listing:
    names = _named(folder, class_folders(folder))
    split: dict[str, list[Item]] = {name: [] for name in SPLITS}
    for label, name in enumerate(names):
        paths = [f"{name}/{file}" for file in image_files(folder / name)]
        if len(paths) < MIN_TO_SPLIT:
            raise UserError(
                f"{folder / name} has {len(paths)} images: at least {MIN_TO_SPLIT} are needed to split "
                "them into train, val and test; add images, or make the splits yourself"
            )
        for part, chosen in split_paths(paths).items():
            split[part] += [Item(path, label, name) for path in chosen]
    items = {part: tuple(of_part) for part, of_part in split.items()}
    note = "; ".join(filter(None, (SPLIT_NOTE, _left_out(folder, files, items))))
    return Listing(folder, items, f"folder {folder}", note)


def split_paths(paths: Sequence[str]) -> dict[str, list[str]]:
    """The images of one class (at least three) in three parts, whatever their order.

    Ranked by the hash of their paths, the first floor(0.3 n) are `test`, the next floor(0.2 n) `val` (at
    least one each), the rest `train`. An image that is added moves few others.
    """
    ranked = sorted(paths, key=lambda path: hashlib.sha256(f"{SPLIT_SEED}/{path}".encode()).digest())
    test = max(1, len(paths) * TEST_PERCENT // 100)
    val = max(1, len(paths) * VAL_PERCENT // 100)
    parts = {"train": ranked[test + val :], "val": ranked[test : test + val], "test": ranked[:test]}
    return {split: sorted(part) for split, part in parts.items()}


def _require_same(folder: Path, classes: dict[str, list[str]]) -> None:
    first, *others = classes
    for other in others:
        for has, lacks in ((first, other), (other, first)):
            missing = sorted(set(classes[has]) - set(classes[lacks]))
            if missing:
                raise UserError(
                    f"{folder / lacks} lacks {len(missing)} classes of {has}/, such as '{missing[0]}': "
                    "every split needs a folder for every class"
                )


def _named(folder: Path, names: list[str]) -> list[str]:
    """The class folders, if CLIP can tell their names apart."""
    if len(names) < 2:
        raise UserError(f"{folder} has one class folder ({names[0]}): at least two are needed")
    if same := same_class(names):
        raise UserError(f"{folder}: the folders '{same[0]}' and '{same[1]}' name the same class: rename one")
    return names


def _left_out(folder: Path, files: list[str], items: dict[str, Items]) -> str:
    """A note on the files that are no images by their ending."""
    listed = {item.path for part in items.values() for item in part}
    folders = sorted({os.path.dirname(path) for path in listed})
    found = [f"{name}/{file}" for name in folders for file in entries(folder / name)[1]]
    strange = sorted({*found, *files} - listed)
    return f"{len(strange)} files are no images and are left out, such as {strange[0]}" if strange else ""
