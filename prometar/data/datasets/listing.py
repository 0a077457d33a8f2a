"""Contents of image folders, in a fixed order."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prometar.data.datasets.dataset import Item, Items
from prometar.errors import UserError
from prometar.io.files import read_text

# those that transforms.FORMATS can read
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True)
class Listing:
    """List of a dataset's images, not verified yet.

    Attributes:
        images: Folder that the items' paths are relative to.
        splits: Items by split. A split may be missing.
        origin: Source of the list, named in messages.
        note: Remark for the user.
    """

    images: Path
    splits: dict[str, Items]
    origin: str
    note: str = ""


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


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, text) of the lines that are not blank.

    Raises:
        UserError: the file cannot be read, or is not text.
    """
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if line.strip():
            yield number, line.strip()
