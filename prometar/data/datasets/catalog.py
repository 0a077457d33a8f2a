"""Datasets by name: benchmarks, prepared copies, custom image folders and loaders, rendered datasets.

Nothing here writes. Splits are the published ones. Only a custom folder without splits is split here.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prometar.bundled.dataset import RenderedSet
from prometar.bundled.suite import SUITE
from prometar.clip.wording import is_template
from prometar.data.datasets.benchmarks import BENCHMARKS, TEMPLATE
from prometar.data.datasets.dataset import (
    SPLITS,
    Dataset,
    FolderSource,
    Item,
    RenderedSource,
    Source,
    invalid_name_reason,
)
from prometar.data.datasets.imagetree import FOLDER, TITLE, read_tree
from prometar.data.datasets.layouts import read_benchmark
from prometar.data.datasets.prepared import MANIFEST, find_manifest, open_prepared
from prometar.errors import UserError
from prometar.io.custom import failing, is_reference, make
from prometar.io.files import is_utf8, resolved
from prometar.io.stores import join, masked

KNOWN = (*BENCHMARKS, *SUITE, FOLDER)
"""Names of all built-in datasets."""


def title_of(name: str) -> str:
    """Return the name of a built-in dataset in tables."""
    return TITLE if name == FOLDER else (BENCHMARKS.get(name) or SUITE[name]).title


def file_name(name: str) -> str:
    """Return a dataset's name as part of a file name.

    Example:
        >>> file_name("dtd"), file_name("mine:flowers")
        ('dtd', 'mine.flowers')
    """
    return name.replace(":", ".")


def require_name(name: str) -> None:
    """Refuse an unknown dataset.

    Raises:
        UserError: neither a known dataset nor a reference to a custom one. Nothing is imported.
    """
    if name not in KNOWN and not is_reference(name):
        raise UserError(
            f"unknown dataset '{name}': known are {', '.join(KNOWN)}, and package.module:Name of your own"
        )


def default_root(*names: str) -> str | None:
    """Return the data root if none is given: PROMETAR_DATA, or `data`; None without benchmarks.

    Example:
        >>> default_root("cells"), default_root("cells", "dtd")
        (None, 'data')
    """
    return (os.environ.get("PROMETAR_DATA") or "data") if set(names) & BENCHMARKS.keys() else None


def place_of(name: str, root: Path | str) -> str:
    """Return the folder or URI of a dataset below a root. `folder` is the root itself."""
    if name == FOLDER:
        return str(root)
    return join(root, BENCHMARKS[name].folder if name in BENCHMARKS else file_name(name))


def lies_in(folder: Path, name: str, root: Path | str | None) -> bool:
    """Return True if a folder lies in the dataset's own folder on this machine."""
    if root is None or "://" in str(root):
        return False
    return resolved(folder).is_relative_to(resolved(place_of(name, root)))


def require_outside(folder: Path, name: str, root: Path | str | None) -> None:
    """Refuse a folder inside the images of the dataset `folder`.

    Raises:
        UserError: results in `folder` would be a class of the user's own images.
    """
    if name == FOLDER and lies_in(folder, name, root) and find_manifest(str(root)) is None:
        raise UserError(f"{resolved(folder)} lies in the dataset's own folder: choose another --out")


def open_dataset(name: str, root: Path | str | None = None, args: Mapping[str, object] = {}) -> Dataset:
    """Open a dataset, ready to draw from.

    Args:
        name: One of `KNOWN`, or `package.module:Name` of a custom loader: called with the root, it returns
            a `Dataset`.
        root: Folder (or URI of prepared copies) that contains the dataset's folder, `--data-root`; for
            `folder`, the tree of image folders itself. A folder with a manifest.json is a prepared copy.
            Not used by rendered datasets.
        args: Settings of a custom loader.

    Raises:
        UserError: unknown name; missing root, folder, list or image; a malformed list.
    """
    dataset = open_unverified(name, root, args)
    for problem in wrong_items(dataset):
        raise UserError(f"{problem}: fix it (`prometar data check {name}` lists all)")
    if isinstance(dataset.source, FolderSource):
        missing = _missing(Path(dataset.source.folder), dataset.items)
        if missing:
            instructions = BENCHMARKS[name].instructions if name in BENCHMARKS else ""
            fix = instructions or "Unpack the archive again, or point --data-root to a complete copy."
            raise UserError(
                f"{len(missing)} of {len(dataset.items)} images are missing, the first is {missing[0]}. "
                f"{fix} `prometar data check {name}` lists all missing images."
            )
    return dataset


def open_unverified(name: str, root: Path | str | None, args: Mapping[str, object] = {}) -> Dataset:
    """Open as `open_dataset`, but images may be missing or listed twice, and labels may have two names."""
    require_name(name)
    if is_reference(name):
        return _open_custom(name, None if root is None else str(root), args)
    dataset = _open(name, root)
    return replace(dataset, templates=BENCHMARKS[name].templates) if name in BENCHMARKS else dataset


def _open_custom(name: str, root: str | None, args: Mapping[str, object]) -> Dataset:
    loader = make(name, args)
    with failing(name):
        found = loader(root)
    if not isinstance(found, Dataset):
        raise UserError(f"{name} must return a Dataset, found {type(found).__name__} (docs/extending.md)")
    for item in found.items:
        if [type(item), *map(type, (item.path, item.label, item.classname))] != [Item, str, int, str]:
            raise UserError(
                f"{name} must return items of a path, a label and a class name, found {item!a:.200}"
            )
    for template in (found.template, *found.templates.values()):
        if not is_template(template):
            raise UserError(
                f"{name} must return a template with one {{}} for the class name: {template!a:.80}"
            )
    return replace(found, name=name)


def _open(name: str, root: Path | str | None) -> Dataset:
    if name in SUITE:
        return rendered_dataset(SUITE[name], RenderedSource(name))
    if root is None:
        raise UserError(f"dataset '{name}' needs its files: pass --data-root DIR, {_expected(name)}")
    if "://" not in str(root) and not Path(root).is_dir():
        raise UserError(f"data root {root} is not a folder: pass --data-root DIR, {_expected(name)}")
    uri = place_of(name, root)
    template = BENCHMARKS[name].template if name in BENCHMARKS else TEMPLATE
    manifest = find_manifest(uri)
    if manifest is not None:
        return open_prepared(uri, manifest, name=name, title=title_of(name), template=template)
    if "://" in uri:
        raise UserError(
            f"there is no prepared copy at {masked(uri)} ({MANIFEST} is missing): run `prometar data prepare`"
        )
    return read_tree(Path(uri)) if name == FOLDER else read_benchmark(BENCHMARKS[name], Path(uri))


def wrong_items(dataset: Dataset) -> Iterator[str]:
    """Yield the flaws of a list: a wrong path, an image listed twice, a label with two names or a bad one."""
    seen: dict[str, str] = {}
    names: dict[int, str] = {}
    for split, items in dataset.splits.items():
        for item in items:
            if item.path in seen:
                yield f"{dataset.list_name} lists {item.path} twice ({seen[item.path]}, {split})"
            elif not is_utf8(item.path):
                yield f"{dataset.list_name} lists {item.path!a}, which is not UTF-8 or holds a null character"
            elif item.path.startswith("/") or ".." in item.path.split("/"):
                yield f"{dataset.list_name} lists {item.path}, which leaves the image folder"
            seen[item.path] = split
            called = names.setdefault(item.label, item.classname)
            if called != item.classname:
                yield (
                    f"{dataset.list_name} calls label {item.label} both '{called}' and '{item.classname}' "
                    f"(at {item.path})"
                )
    for label, name in names.items():
        if reason := invalid_name_reason(name):
            yield f"{dataset.list_name} calls label {label} {name!a}, which {reason}"


def _expected(name: str) -> str:
    if name == FOLDER:
        return "a folder with train/ and test/ folders of class folders, or of class folders"
    where = f"the folder that holds {place_of(name, '')}/"
    return f"{where}, or get it with `prometar data download {name}`" if name in BENCHMARKS else where


def rendered_dataset(row: RenderedSet[Any], source: Source) -> Dataset:
    """Return a rendered dataset whose images are read from `source`."""
    label = {name: k for k, name in enumerate(row.classnames)}

    def items(split: str) -> Iterator[Item]:
        for path in row.paths(split):
            name = path.split("/")[0]
            yield Item(path, label[name], name)

    train, val, test = (tuple(items(split)) for split in SPLITS)
    return Dataset(row.name, row.title, train, val, test, source, row.template, "the renderer")


def _missing(images: Path, items: Sequence[Item]) -> list[Path]:
    """Return the images of `items` that are missing. Each folder is listed once, which takes milliseconds."""
    listed: dict[str, set[str]] = {}
    missing = []
    for item in items:
        folder, _, name = item.path.rpartition("/")
        if folder not in listed:
            place = images / folder
            listed[folder] = set(os.listdir(place)) if place.is_dir() else set()
        if name not in listed[folder]:
            missing.append(images / item.path)
    return missing
