"""Layouts of benchmark folders: one small reader per layout, a value in the table."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from prometar.data.datasets.dataset import Item
from prometar.data.datasets.listing import (
    SPLITS,
    Items,
    Listing,
    class_folders,
    labelled_images,
    read_lines,
    read_text,
)
from prometar.errors import UserError
from prometar.io.files import is_utf8

CLASSNAMES = "classnames.txt"


class Layout(Protocol):
    """A way to list a dataset's images.

    Attributes:
        parts: Files and folders, below the dataset's folder, that must be there.
    """

    @property
    def parts(self) -> tuple[str, ...]: ...

    def read(self, folder: Path) -> Listing:
        """The images of `folder`, whose parts are there.

        Raises:
            UserError: a list or folder is not as the layout says; the message names it.
        """
        ...


@dataclass(frozen=True)
class SplitFile:
    """A JSON file {"train" | "val" | "test": [[path below `images`, label, class name], ...]}.

    The order of its entries is kept: few-shot draws depend on it.
    """

    images: str
    file: str
    note: str = ""

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.file,) if self.images == "." else (self.images, self.file)

    def read(self, folder: Path) -> Listing:
        file = folder / self.file
        try:
            tree = json.loads(read_text(file).removeprefix("\ufeff"))  # as some editors begin a file
        except (ValueError, RecursionError) as error:
            raise UserError(f"split file {file} is not JSON: {error}") from None
        if not isinstance(tree, dict) or any(not isinstance(tree.get(split), list) for split in SPLITS):
            raise UserError(f"split file {file} must hold the lists {', '.join(SPLITS)}")
        splits = {
            split: tuple(
                _item(row, f"split file {file}, {split} entry {k}") for k, row in enumerate(tree[split])
            )
            for split in SPLITS
        }
        if not splits["train"]:
            raise UserError(f"split file {file} has no training images")
        return Listing(folder / self.images, splits, f"split file {file}", self.note)


@dataclass(frozen=True)
class ImageLists:
    """A list a split, of '<class folder>/<image>' lines; labels are the ranks of the class folders.

    Args:
        images: The image folder.
        lists: Each split's; a split may be missing.
        ending: What the lists leave out of the images' names.
    """

    images: str
    lists: Mapping[str, str]
    ending: str = ""

    def read(self, folder: Path) -> Listing:
        paths = {split: self._paths(folder / file) for split, file in self.lists.items()}
        names = sorted({path.split("/")[0] for part in paths.values() for path in part})
        label = {name: k for k, name in enumerate(names)}
        splits = {
            split: tuple(Item(path, label[path.split("/")[0]], path.split("/")[0]) for path in part)
            for split, part in paths.items()
        }
        return Listing(folder / self.images, splits, f"the lists of {folder}")

    def _paths(self, file: Path) -> list[str]:
        lines = read_lines(file)
        return [_inside(f"{line.strip()}{self.ending}", f"{file}, line {number}") for number, line in lines]


@dataclass(frozen=True)
class VariantLists:
    """FGVC-Aircraft: variants.txt orders the classes, images_variant_*.txt have '<image id> <variant>'."""

    images: str = "images"

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.images, "variants.txt", *map(self._file, SPLITS))

    @staticmethod
    def _file(split: str) -> str:
        return f"images_variant_{split}.txt"

    def read(self, folder: Path) -> Listing:
        names = [line.strip() for _, line in read_lines(folder / "variants.txt")]
        label = {name: k for k, name in enumerate(names)}
        splits: dict[str, Items] = {}
        for split in SPLITS:
            file = folder / self._file(split)
            items = []
            for number, line in read_lines(file):
                image, _, name = line.strip().partition(" ")
                if name not in label:
                    raise UserError(f"{file}, line {number}: '{name}' is no class of variants.txt")
                items.append(Item(_inside(f"{image}.jpg", f"{file}, line {number}"), label[name], name))
            splits[split] = tuple(items)
        return Listing(folder / self.images, splits, f"{folder / self._file('*')}")


@dataclass(frozen=True)
class WnidFolders:
    """ImageNet: a folder a class, called by its wnid; classnames.txt has '<wnid> <name>' lines.

    A label is the rank of the folder among the sorted ones: of 1000 in ImageNet, of 200 in its variants A and
    R, which are classified among their own classes. Images are sorted by name; the field's code takes the
    file system's order, so its draws differ from disk to disk.

    Args:
        images: The image folder.
        splits: (split, folder below `images`) pairs; all hold the same classes.
    """

    images: str
    splits: tuple[tuple[str, str], ...] = (("test", "."),)

    @property
    def parts(self) -> tuple[str, ...]:
        folders = (PurePosixPath(self.images, below) for _, below in self.splits)
        return (*map(str, folders), CLASSNAMES)

    def read(self, folder: Path) -> Listing:
        names = read_classnames(folder / CLASSNAMES)
        images = folder / self.images
        found = {below: class_folders(images / below) for _, below in self.splits}
        first = self.splits[0][1]
        for below, wnids in found.items():
            strange = sorted(set(wnids) - set(names))
            if strange:
                raise UserError(f"{images / below / strange[0]} is no class of {folder / CLASSNAMES}")
            differing = sorted(set(wnids) ^ set(found[first]))
            if differing:
                raise UserError(
                    f"{images / first} and {images / below} hold different classes, such as {differing[0]}: "
                    "unpack both again"
                )
        splits: dict[str, Items] = {}
        for split, below in self.splits:
            folders = [f"{PurePosixPath(below, wnid)}" for wnid in found[below]]
            splits[split] = labelled_images(images, folders, [names[wnid] for wnid in found[below]])
        return Listing(images, splits, f"folder {images}")


@dataclass(frozen=True)
class NumberedFolders:
    """ImageNetV2: the folder k, from 0, holds test images of the k-th line of classnames.txt."""

    images: str

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.images, CLASSNAMES)

    def read(self, folder: Path) -> Listing:
        names = list(read_classnames(folder / CLASSNAMES).values())
        images = folder / self.images
        differing = {str(k) for k in range(len(names))} ^ set(class_folders(images))
        if differing:
            raise UserError(
                f"{images} must hold the folders 0 to {len(names) - 1}, one for each line of {CLASSNAMES}: "
                f"{min(differing)} is missing or is no such folder"
            )
        items = labelled_images(images, map(str, range(len(names))), names)
        return Listing(images, {"test": items}, f"folder {images}")


def read_classnames(file: Path) -> dict[str, str]:
    """wnid -> class name, in the order of the file's '<wnid> <name>' lines.

    Raises:
        UserError: unreadable, a line without a name, a wnid twice.
    """
    names: dict[str, str] = {}
    for number, line in read_lines(file):
        wnid, _, name = line.strip().partition(" ")
        if not name or wnid in names:
            raise UserError(
                f"{file}, line {number}: expected '<wnid> <name>', each wnid once, found '{line}'"
            )
        names[wnid] = name
    return names


_MOST_LABEL = 10**9


def _item(row: Any, where: str) -> Item:
    match row:
        case [str(path), int(label), str(classname)] if not isinstance(label, bool):
            if not -_MOST_LABEL <= label <= _MOST_LABEL:
                raise UserError(f"{where}: label {label} is beyond {_MOST_LABEL:,}")
            return Item(_inside(path, where), label, classname)
    raise UserError(f"{where}: expected [path, label, class name], found {str(row)[:80]}")


def _inside(path: str, where: str) -> str:
    if not is_utf8(path):
        raise UserError(f"{where}: path {path!a} is not UTF-8, or holds a null character: rename the image")
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts:
        raise UserError(f"{where}: path '{path}' leaves the image folder")
    return str(parts)  # './a' and 'a//b' are the same images as 'a' and 'a/b'
