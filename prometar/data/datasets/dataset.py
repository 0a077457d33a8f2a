"""Dataset: items (path, label, class name) in three splits, and a source of their bytes."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol
from unicodedata import category

from prometar.bundled.suite import SUITE
from prometar.clip.wording import readable
from prometar.errors import UserError
from prometar.io.files import read_bytes

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Item:
    """One image: its path relative to the dataset's image folder (unique), its label, its class name."""

    path: str
    label: int
    classname: str


Items = tuple[Item, ...]


class Source(Protocol):
    """Source of encoded images. Small and picklable: workers on other machines hold a copy."""

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        """Return the encoded images (JPEG, PNG, ...) at `paths`, in their order.

        Raises:
            UserError: an image is missing or unreadable. The message names it.
        """
        ...


@dataclass(frozen=True)
class FolderSource:
    """Image files below a folder, as a benchmark is unpacked."""

    folder: str

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        return [self._read(Path(self.folder, path)) for path in paths]

    def _read(self, file: Path) -> bytes:
        try:
            return read_bytes(file)
        except OSError as error:
            raise UserError(
                f"cannot read image {file} ({error.strerror}): "
                "restore it, or pass --data-root with a complete copy"
            ) from None


@dataclass(frozen=True)
class RenderedSource:
    """The rendered dataset `name`. Images are rendered as PNG files when they are read."""

    name: str

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        return [_rendered(self.name, path) for path in paths]


@lru_cache(maxsize=1024)
def _rendered(name: str, path: str) -> bytes:
    """Render an image once per process (about 10 KiB each), since every epoch reads it again."""
    return SUITE[name].encode(path)


@dataclass(frozen=True)
class Dataset:
    """Three splits of items, and the source of their bytes.

    Args:
        name, title: Name for `--dataset`, and the name in tables.
        train, val, test: Some may be empty: ImageNet has no `val`, its variants have only `test`.
        source: Source of the encoded images.
        template: Zero-shot prompt, such as "{} texture.".
        wordings: Other templates by name: `photo` begins with "a photo of" (KgCoOp's), `name_last` ends with
            the class name (ProGrad's).
        origin: Source of the list (a split file, a folder), named in messages.
        note: Remark for the user, such as a split that was made here.
    """

    name: str
    title: str
    train: Items
    val: Items
    test: Items
    source: Source
    template: str
    origin: str = ""
    note: str = ""
    wordings: Mapping[str, str] = field(default_factory=dict)

    def wording(self, name: str) -> str:
        """Return the template of this name, by default the zero-shot prompt."""
        return self.wordings.get(name, self.template)

    @property
    def splits(self) -> dict[str, Items]:
        """Splits by name, in the order train, val, test."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def items(self) -> Items:
        """Items of all splits, in the same order."""
        return (*self.train, *self.val, *self.test)

    @property
    def counts(self) -> dict[str, int]:
        """Number of images per split."""
        return {split: len(items) for split, items in self.splits.items()}

    @property
    def classnames(self) -> tuple[str, ...]:
        """Class names in the order of their labels."""
        return classnames(self.items)

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of each split's paths, labels and class names. The images themselves are not read."""
        state = hashlib.sha256()
        for split, items in self.splits.items():
            state.update(f"{split}\n".encode())
            for item in items:
                state.update(f"{json.dumps([item.path, item.label, item.classname])}\n".encode())
        return state.hexdigest()


def as_read(name: str) -> str:
    """Return a class name as CLIP reads it: in lower case, with spaces for underscores."""
    return " ".join(readable(name).lower().split())


def same_class(names: Iterable[str]) -> tuple[str, str] | None:
    """Return the first two different names that CLIP cannot tell apart.

    Example:
        >>> same_class(["cat", "dog", "Cat"])
        ('cat', 'Cat')
    """
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(as_read(name), name)) != name:
            return other, name
    return None


def classnames(items: Iterable[Item]) -> tuple[str, ...]:
    """Return the class names of `items` in the order of their labels."""
    names = {item.label: item.classname for item in items}
    return tuple(names[label] for label in sorted(names))


MAX_NAME = 1000  # characters; a text of CLIP has 77 tokens


def flaw_of(classname: str) -> str:
    """Return why a prompt cannot contain a class name, or "" if it can.

    Example:
        >>> flaw_of("zigzagged"), flaw_of(" ")
        ('', 'names nothing')
    """
    if len(classname) > MAX_NAME:
        return f"is longer than {MAX_NAME} characters"
    kinds = [category(character) for character in classname.replace("_", " ")]  # as prompts read it
    if {"Cc", "Cs"} & set(kinds):
        return "holds control characters, or is not UTF-8"
    return "" if any(kind[0] not in "CZ" for kind in kinds) else "names nothing"
