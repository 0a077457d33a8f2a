"""Dataset: items (path, label, class name) in three splits, and a source of the bytes."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol
from unicodedata import category

from prometar.clip.wording import readable
from prometar.errors import UserError


@dataclass(frozen=True, slots=True)
class Item:
    """One image: its path relative to the dataset's image folder (unique), its label, its class name."""

    path: str
    label: int
    classname: str


class Source(Protocol):
    """Source of encoded images. Small and picklable: workers on other machines hold a copy."""

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        """Encoded images (JPEG, PNG, ...), one a path, in the order of `paths`.

        Raises:
            UserError: an image is missing or unreadable; the message names it.
        """
        ...


@dataclass(frozen=True)
class Dataset:
    """Three splits of items, and where their bytes come from.

    Args:
        name, title: What `--dataset` takes, and the name in tables.
        train, val, test: Some are empty: ImageNet has no `val`, its variants have only `test`.
        source: Of the encoded images.
        template: Zero-shot prompt, such as "{} texture.".
        wordings: The template in other words, by what they are called: `photo` begins with "a photo of"
            (KgCoOp's), `name_last` has the class name at the end (ProGrad's).
        origin: What lists the images (a split file, a folder); named in messages.
        note: What a user should know, such as a split that was made here.
    """

    name: str
    title: str
    train: tuple[Item, ...]
    val: tuple[Item, ...]
    test: tuple[Item, ...]
    source: Source
    template: str
    origin: str = ""
    note: str = ""
    wordings: Mapping[str, str] = field(default_factory=dict)

    def wording(self, name: str) -> str:
        """The template in these words; its own where the dataset has no others."""
        return self.wordings.get(name, self.template)

    @property
    def splits(self) -> dict[str, tuple[Item, ...]]:
        """The splits by name, in the order train, val, test."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def items(self) -> tuple[Item, ...]:
        """Those of all splits, in the same order."""
        return (*self.train, *self.val, *self.test)

    @property
    def counts(self) -> dict[str, int]:
        """Images a split."""
        return {split: len(items) for split, items in self.splits.items()}

    @property
    def classnames(self) -> tuple[str, ...]:
        """Class names in the order of their labels."""
        return classnames(self.items)

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of each split's paths, labels and class names; the images themselves are not read."""
        state = hashlib.sha256()
        for split, items in self.splits.items():
            state.update(f"{split}\n".encode())
            for item in items:
                state.update(f"{json.dumps([item.path, item.label, item.classname])}\n".encode())
        return state.hexdigest()


def as_read(name: str) -> str:
    """A class name as CLIP reads it: lower case, and _ as a space."""
    return " ".join(readable(name).lower().split())


def same_class(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two different names that CLIP cannot tell apart.

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
    """Class names of `items` in the order of their labels.

    Raises:
        UserError: a label carries two names.
    """
    names: dict[int, str] = {}
    for item in items:
        known = names.setdefault(item.label, item.classname)
        if known != item.classname:
            raise UserError(
                f"label {item.label} is called both '{known}' and '{item.classname}' (at {item.path}): "
                "mend the split file"
            )
    return tuple(names[label] for label in sorted(names))


MAX_NAME = 1000  # characters; a text of CLIP has 77 tokens


def flaw_of(classname: str) -> str:
    """Why a prompt cannot name a class so; "" where it can.

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
