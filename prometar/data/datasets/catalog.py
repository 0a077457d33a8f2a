"""The datasets by name: the benchmarks, prepared copies, a user's own image folders, the embedded suite.

Nothing here writes. Splits are the published ones; only a user's own folder that has none is split here, by a
rule that is stated with it.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prometar.bundled.dataset import RenderedSet
from prometar.bundled.suite import SUITE
from prometar.clip.wording import is_template
from prometar.data.datasets.benchmarks import BENCHMARKS, TEMPLATE, Benchmark, how_to_get, layout_in
from prometar.data.datasets.dataset import Dataset, Item, Source, flaw_of
from prometar.data.datasets.imagetree import read_tree
from prometar.data.datasets.listing import SPLITS, Items, Listing
from prometar.data.datasets.manifest import MANIFEST, find_manifest, open_prepared
from prometar.data.datasets.sources import FolderSource, RenderedSource
from prometar.errors import UserError
from prometar.io.custom import failing, is_reference, make
from prometar.io.files import is_utf8, resolved
from prometar.io.stores import join, masked

FOLDER = "folder"


def known() -> tuple[str, ...]:
    """Every name that `open_dataset` takes."""
    return (*BENCHMARKS, *SUITE, FOLDER)


def title_of(name: str) -> str:
    """The name in tables."""
    if name == FOLDER:
        return "your own images"
    return (BENCHMARKS.get(name) or SUITE[name]).title


def file_name(name: str) -> str:
    """A dataset's name where it is part of a file's.

    Example:
        >>> file_name("dtd"), file_name("mine:flowers")
        ('dtd', 'mine.flowers')
    """
    return name.replace(":", ".")


def require_name(name: str) -> None:
    """Raises a UserError of neither a known dataset nor the user's own; nothing is imported for that."""
    if name not in known() and not is_reference(name):
        raise UserError(
            f"unknown dataset '{name}': known are {', '.join(known())}, and package.module:Name of your own"
        )


def require_different(names: Sequence[str]) -> None:
    """Raises a UserError where a study's datasets name one twice."""
    if len(set(names)) < len(names):
        raise UserError(f"--dataset names one twice: {' '.join(names)}")


def default_root(*names: str) -> str | None:
    """Return the data root if none is given: PROMETAR_DATA, or `data`; None without benchmarks.

    Example:
        >>> default_root("cells"), default_root("cells", "dtd")
        (None, 'data')
    """
    return (os.environ.get("PROMETAR_DATA") or "data") if set(names) & BENCHMARKS.keys() else None


def place_beside(name: str, root: str | None, args: Mapping[str, Any]) -> str:
    """Return what distinguishes datasets with one name; "" for a benchmark, whose copies are equal."""
    if name in BENCHMARKS or name in SUITE:
        return ""
    return " ".join([root or "", *(f"{key}={value}" for key, value in sorted(args.items()))]).strip()


def place_of(name: str, root: Path | str) -> str:
    """Folder or URI of a dataset below a root; `folder` is the root itself."""
    if name == FOLDER:
        return str(root)
    return join(root, BENCHMARKS[name].folder if name in BENCHMARKS else file_name(name))


def lies_in(folder: Path, name: str, root: Path | str | None) -> bool:
    """Return True if a folder lies in the dataset's own folder on this machine."""
    if root is None or "://" in str(root):
        return False
    return resolved(folder).is_relative_to(resolved(place_of(name, root)))


def require_outside(folder: Path, name: str, root: Path | str | None) -> None:
    """Raises a UserError where what is written to `folder` would be a class of the user's own images."""
    if name == FOLDER and lies_in(folder, name, root) and find_manifest(str(root)) is None:
        raise UserError(f"{resolved(folder)} lies in the dataset's own folder: choose another --out")


def open_dataset(name: str, root: Path | str | None = None, args: Mapping[str, Any] | None = None) -> Dataset:
    """A dataset, ready to draw from.

    Args:
        name: One of `known()`, or `package.module:Name` of a loader of one's own: called with the root, it
            returns a `Dataset`.
        root: The folder (or URI of prepared copies) that holds the dataset's folder, `--data-root`; for
            `folder`, the tree of image folders itself. A folder with a manifest.json is a prepared copy.
            The embedded suite needs none: it is rendered.
        args: Settings of a loader of one's own.

    Raises:
        UserError: unknown name; missing root, folder, list or image; a malformed list.
    """
    dataset = open_unverified(name, root, args)
    for problem in problems_of(dataset):
        raise UserError(f"{problem}: mend it (`prometar data check {name}` lists all)")
    _require_images(dataset)
    return dataset


def open_unverified(
    name: str, root: Path | str | None = None, args: Mapping[str, Any] | None = None
) -> Dataset:
    """As `open_dataset`, but what is listed may be missing, listed twice, or named in two ways."""
    require_name(name)
    if name not in known():
        return _open_own(name, None if root is None else str(root), args or {})
    if args:
        raise UserError(f"data.args are settings of a loader of your own, and {name} is built in")
    dataset = _open(name, root)
    return replace(dataset, wordings=BENCHMARKS[name].wordings) if name in BENCHMARKS else dataset


def _open_own(name: str, root: str | None, args: Mapping[str, Any]) -> Dataset:
    require_name(name)
    loader = make(name, args)
    if not callable(loader):
        raise UserError(f"{name} is no loader: it cannot be called (docs/extending.md)")
    with failing(name):
        found = loader(root)
    if not isinstance(found, Dataset):
        raise UserError(f"{name} must return a Dataset, found {type(found).__name__} (docs/extending.md)")
    strange = next((item for item in found.items if not _typed(item)), None)
    if strange is not None:
        raise UserError(
            f"{name} must return items of a path, a label and a class name, found {strange!a:.200}"
        )
    for template in (found.template, *found.wordings.values()):
        if not is_template(template):
            raise UserError(
                f"{name} must return a template with one {{}} for the class's name, found {template!a:.80}"
            )
    return replace(found, name=name)


def _typed(item: Item) -> bool:
    return (
        isinstance(item, Item)
        and all(isinstance(text, str) for text in (item.path, item.classname))
        and isinstance(item.label, int)
        and is_utf8(item.path)
    )


def _open(name: str, root: Path | str | None) -> Dataset:
    if root is not None and "://" not in str(root) and not Path(root).is_dir():
        raise UserError(f"data root {root} is not a folder: pass --data-root DIR, {_what(name)}")
    if root is None:
        if name in SUITE:
            return rendered_dataset(SUITE[name], RenderedSource(name))
        raise UserError(f"dataset '{name}' needs its files: pass --data-root DIR, {_what(name)}")
    uri = place_of(name, root)
    row = BENCHMARKS.get(name) or SUITE.get(name)
    template = row.template if row else TEMPLATE
    manifest = find_manifest(uri)
    if manifest is not None:
        return open_prepared(uri, manifest, name=name, title=title_of(name), template=template)
    if name in SUITE:
        return rendered_dataset(SUITE[name], RenderedSource(name))
    if "://" in uri:
        raise UserError(
            f"there is no prepared copy at {masked(uri)} ({MANIFEST} is missing): run `prometar data prepare`"
        )
    listing = read_tree(Path(uri)) if name == FOLDER else _list(BENCHMARKS[name], Path(uri))
    train, val, test = (listing.splits.get(split, ()) for split in SPLITS)
    source = FolderSource(str(listing.images))
    return Dataset(name, title_of(name), train, val, test, source, template, listing.origin, listing.note)


def problems_of(dataset: Dataset) -> Iterator[str]:
    """Return the flaw of a list: a duplicate image, a label with two names, or an unreadable name."""
    seen: dict[str, str] = {}
    names: dict[int, str] = {}
    for split, items in dataset.splits.items():
        for item in items:
            if item.path in seen:
                yield f"{dataset.origin} lists {item.path} twice ({seen[item.path]}, {split})"
            seen[item.path] = split
            if item.label not in names and (flaw := flaw_of(item.classname)):
                called = f"calls label {item.label} {item.classname!a}, which {flaw}"
                yield f"{dataset.origin} {called} (at {item.path})"
            known_as = names.setdefault(item.label, item.classname)
            if known_as != item.classname:
                yield (
                    f"{dataset.origin} calls label {item.label} both '{known_as}' and '{item.classname}' "
                    f"(at {item.path})"
                )


def _what(name: str) -> str:
    if name == FOLDER:
        return "a folder with train/ and test/ folders of class folders, or of class folders"
    where = f"the folder that holds {place_of(name, '')}/"
    return f"{where}, or get it with `prometar data download {name}`" if name in BENCHMARKS else where


def rendered_dataset(row: RenderedSet[Any], source: Source) -> Dataset:
    """Return a rendered dataset whose images are read from `source`."""
    label = {name: k for k, name in enumerate(row.classnames)}

    def items(split: str) -> Items:
        names = ((path, path.split("/")[0]) for path in row.paths(split))
        return tuple(Item(path, label[name], name) for path, name in names)

    train, val, test = map(items, SPLITS)
    return Dataset(row.name, row.title, train, val, test, source, row.template, "the renderer")


def _list(row: Benchmark, folder: Path) -> Listing:
    if not folder.is_dir():
        raise UserError(
            f"dataset folder {folder} is missing: --data-root must be the folder that holds {row.folder}/; "
            f"{how_to_get(row)}"
        )
    layout = layout_in(row, folder)
    for part in layout.parts:
        if not (folder / part).exists():
            raise UserError(f"{folder / part} is missing: {how_to_get(row, part)}")
    return layout.read(folder)


def _require_images(dataset: Dataset) -> None:
    if not isinstance(dataset.source, FolderSource):
        return
    missing = missing_below(Path(dataset.source.folder), dataset.items)
    if missing:
        raise UserError(
            f"{len(missing)} of {len(dataset.items)} images are missing, the first is {missing[0]}: "
            "unpack the archive again, or point --data-root to a complete copy "
            f"(`prometar data check {dataset.name}` lists all)"
        )


def missing_below(images: Path, items: Iterable[Item]) -> list[Path]:
    """The images of `items` that do not lie there; one listing a folder, so that this takes milliseconds."""
    listed: dict[str, set[str]] = {}
    missing = []
    for item in items:
        folder, _, name = item.path.rpartition("/")
        if folder not in listed:
            try:
                listed[folder] = set(os.listdir(images / folder))
            except OSError:
                listed[folder] = set()
        if name not in listed[folder]:
            missing.append(images / item.path)
    return missing
