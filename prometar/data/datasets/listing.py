"""Contents of a dataset's folder: folders, images and lines of text, in a fixed order."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prometar.data.datasets.dataset import Item
from prometar.errors import UserError
from prometar.io.files import read_bytes

SPLITS = ("train", "val", "test")
# those that transforms.FORMATS can read
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

Items = tuple[Item, ...]


@dataclass(frozen=True)
class Listing:
    """Contents of a folder, not verified yet.

    Attributes:
        images: The folder that the items' paths are relative to.
        splits: Items by split; a split that the layout does not have is missing.
        origin: What lists them; named in messages.
        note: What a user should know about them.
    """

    images: Path
    splits: dict[str, Items]
    origin: str
    note: str = ""


def entries(folder: Path) -> tuple[list[str], list[str]]:
    """Sorted names of the folders and of the files in `folder`, without hidden ones.

    Raises:
        UserError: it cannot be listed, or a name is not UTF-8.
    """
    try:
        with os.scandir(folder) as found:
            visible = [(entry.name, entry.is_dir()) for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot list {folder} ({error.strerror})") from None
    for name, _ in visible:
        if not name.isascii() and name != name.encode("utf-8", "replace").decode():
            raise UserError(f"the name of {folder}/{name!a} is not UTF-8: rename it")
    return sorted(n for n, is_dir in visible if is_dir), sorted(n for n, is_dir in visible if not is_dir)


def class_folders(folder: Path) -> list[str]:
    """Sorted names of the folders in `folder`.

    Raises:
        UserError: it has none.
    """
    folders, files = entries(folder)
    if not folders:
        found = f"{len(files)} files, such as {files[0]}" if files else "nothing"
        raise UserError(f"{folder} has no class folders: expected a folder of images a class, found {found}")
    return folders


def image_files(folder: Path) -> list[str]:
    """Sorted names of the images, by their ending, in a class folder.

    Raises:
        UserError: it has none, or holds folders.
    """
    folders, files = entries(folder)
    if folders:
        raise UserError(f"{folder / folders[0]} is a folder in a class folder: images must lie right in it")
    images = [file for file in files if file.lower().endswith(ENDINGS)]
    if not images:
        raise UserError(f"class folder {folder} has no images ({', '.join(ENDINGS)})")
    return images


def labelled_images(images: Path, folders: Iterable[str], names: Iterable[str]) -> Items:
    """The images of class folders below `images`: the k-th folder has the label k and the k-th name.

    Raises:
        UserError: see `image_files`.
    """
    return tuple(
        Item(f"{folder}/{file}", label, name)
        for label, (folder, name) in enumerate(zip(folders, names, strict=True))
        for file in image_files(images / folder)
    )


def read_text(file: Path) -> str:
    """A text file.

    Raises:
        UserError: missing, unreadable, or not text.
    """
    try:
        return read_bytes(file).decode()
    except OSError as error:
        raise UserError(f"cannot read {file} ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{file} is not text: get it again") from None


def read_lines(file: Path) -> list[tuple[int, str]]:
    """(number from 1, text) of the lines that are not blank.

    Raises:
        UserError: as `read_text`, or there are none.
    """
    lines = [(k, line) for k, line in enumerate(read_text(file).splitlines(), 1) if line.strip()]
    if not lines:
        raise UserError(f"{file} is empty: get it again")
    return lines
