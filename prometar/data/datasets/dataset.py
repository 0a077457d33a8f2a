"""Datasets: images with their labels and class names in three splits, and the source of the image files."""

import hashlib
import json
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol
from unicodedata import category

from prometar.clip.wording import readable
from prometar.embedded.datasets import RENDERED
from prometar.errors import InfrastructureError, UserError
from prometar.io.files import MACHINE_FAULTS, read_bytes

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Item:
    """Image of a dataset.

    Args:
        path: Path relative to the image folder, which is unique in a dataset.
        label: Number of the class, from 0.
        classname: Name of the class.
    """

    path: str
    label: int
    classname: str


Items = tuple[Item, ...]


class Source(Protocol):
    """Source of encoded images. Must be small and picklable, because each worker receives a copy."""

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        """Return the encoded images (JPEG, PNG, ...) in the order of `paths`.

        Raises:
            UserError: an image is missing or unreadable. The message contains its path.
            InfrastructureError: the disk or the store fails.
        """
        ...


@dataclass(frozen=True)
class FolderSource:
    """Image files below a folder.

    If the disk or the mount fails, or the folder itself is missing, `read_many` raises an
    InfrastructureError, because the machine is at fault and not an image.
    """

    folder: str

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        return [self._read(Path(self.folder, path)) for path in paths]

    def _read(self, file: Path) -> bytes:
        try:
            return read_bytes(file)
        except OSError as error:
            is_machine_fault = error.errno in MACHINE_FAULTS or not Path(self.folder).is_dir()
            if is_machine_fault:
                raise InfrastructureError(
                    f"Cannot read image {file} ({error.strerror}) on {socket.gethostname()}. "
                    "Check the disk and the mounts of this machine."
                ) from None
            raise UserError(
                f"Cannot read image {file} ({error.strerror}). "
                "Restore the file, or pass --data-root with a complete copy."
            ) from None


@dataclass(frozen=True)
class RenderedSource:
    """Images of the rendered dataset `name`. Each image is rendered as a PNG file when it is read."""

    name: str

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        return [_render(self.name, path) for path in paths]


# The cache is larger than the largest rendered dataset (3,264 images). A smaller cache would be useless,
# because images are read in a cycle, so each one would be evicted before it is read again.
@lru_cache(maxsize=4096)
def _render(name: str, path: str) -> bytes:
    """Return an image as a PNG file of about 10 KiB. Cached, because other epochs and runs read it again."""
    return RENDERED[name].encode(path)


@dataclass(frozen=True)
class Dataset:
    """Images in three splits, and the source of the image files.

    Args:
        name: Name for `--dataset`.
        title: Name in tables.
        train, val, test: Images of each split. ImageNet's `val` is empty. ImageNet variants have only `test`.
        source: Source of the encoded images.
        template: Template of zero-shot prompts, such as "{} texture.".
        templates: Other templates by name. `photo` is the template of KgCoOp's published code. `name_last`,
            which ProGrad uses, ends with the class name.
        items_origin: Source of the image list, for error messages, such as "folder data/dtd/images".
        note: Remark for the user, such as how images were split automatically. Empty if there is none.
        exif_rotation: True to rotate photos as their EXIF data say. False for benchmarks, as in CoOp.
        base_classes: Names of the base classes. If empty, the first half of the classes are base classes.
        excluded: Paths of images that no run reads, such as corrupt images. Excluded images stay in the
            splits, so that the few-shot draws of other images do not change.
    """

    name: str
    title: str
    train: Items
    val: Items
    test: Items
    source: Source
    template: str
    items_origin: str = ""
    note: str = ""
    templates: Mapping[str, str] = field(default_factory=dict)
    exif_rotation: bool = True
    base_classes: tuple[str, ...] = ()
    excluded: frozenset[str] = frozenset()

    def template_named(self, name: str) -> str:
        """Return the template `name`, or the zero-shot template if the dataset does not define `name`."""
        return self.templates.get(name, self.template)

    @property
    def splits(self) -> dict[str, Items]:
        """Splits by name, in the order train, val, test."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def items(self) -> Items:
        """Items of train, val and test, in this order."""
        return (*self.train, *self.val, *self.test)

    def without_excluded(self, items: Iterable[Item]) -> Items:
        """Return the items that are not excluded."""
        return tuple(item for item in items if item.path not in self.excluded)

    @property
    def counts(self) -> dict[str, int]:
        """Number of images by split."""
        return {split: len(items) for split, items in self.splits.items()}

    @property
    def classnames(self) -> tuple[str, ...]:
        """Class names of all splits, in the order of their labels."""
        return classnames(self.items)

    @property
    def base_labels(self) -> tuple[int, ...]:
        """Labels of the base classes, sorted.

        If `base_classes` is empty, the base classes are the first half, rounded up, of the training classes.
        """
        names = {item.label: item.classname for item in self.train}
        labels = sorted(names)
        if self.base_classes:
            return tuple(label for label in labels if names[label] in self.base_classes)
        num_base = (len(labels) + 1) // 2
        return tuple(labels[:num_base])

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of all fields that determine images, labels and classes. Image files are not read.

        The digest does not depend on `excluded`, so that a study may continue after an image is excluded.
        """
        digest = hashlib.sha256()
        if self.exif_rotation:
            digest.update(b"exif_rotation\n")
        if self.base_classes:
            digest.update(f"{json.dumps(self.base_classes)}\n".encode())
        for split, items in self.splits.items():
            digest.update(f"{split}\n".encode())
            for item in items:
                digest.update(f"{json.dumps([item.path, item.label, item.classname])}\n".encode())
        return digest.hexdigest()


def paths_digest(items: Iterable[Item]) -> str:
    """Return the SHA-256 (hex) of the paths of images, in order."""
    lines = "\n".join(item.path for item in items)
    return hashlib.sha256(lines.encode()).hexdigest()


def normalize_name(name: str) -> str:
    """Return a class name as CLIP tokenizes it: in lower case, with single spaces and no underscores."""
    return " ".join(readable(name).lower().split())


def find_duplicate_names(names: Iterable[str]) -> tuple[str, str] | None:
    """Return the first two different names that CLIP cannot tell apart, or None if there are none.

    Example:
        >>> find_duplicate_names(["cat", "dog", "Cat"])
        ('cat', 'Cat')
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(normalize_name(name), name)
        if other != name:
            return other, name
    return None


def classnames(items: Iterable[Item]) -> tuple[str, ...]:
    """Return the class names of `items` in the order of their labels."""
    names = {item.label: item.classname for item in items}
    return tuple(names[label] for label in sorted(names))


_MAX_SHOWN_NAMES = 12


def abbreviated(names: Sequence[str]) -> str:
    """Return names for a message. If there are more than 12, only the first 11 and the last are shown.

    Example:
        >>> abbreviated(["cat", "dog"])
        'cat, dog'
    """
    if len(names) <= _MAX_SHOWN_NAMES:
        return ", ".join(names)
    first_names = names[: _MAX_SHOWN_NAMES - 1]
    return ", ".join([*first_names, "...", names[-1]])


MAX_NAME_LENGTH = 1000  # characters, far more than CLIP's limit of 77 tokens


def invalid_name_reason(classname: str) -> str:
    """Return why a class name cannot be used in a prompt, or "" if it can.

    Example:
        >>> invalid_name_reason("zigzagged"), invalid_name_reason(" ")
        ('', 'has no visible character')
    """
    if len(classname) > MAX_NAME_LENGTH:
        return f"is longer than {MAX_NAME_LENGTH} characters"
    categories = {category(character) for character in readable(classname)}
    if "Cc" in categories or "Cs" in categories:  # Cs: surrogates, which stand for bytes that are not UTF-8
        return "contains control characters or is not UTF-8"
    if all(each.startswith(("C", "Z")) for each in categories):  # C: invisible characters, Z: spaces
        return "has no visible character"
    return ""
