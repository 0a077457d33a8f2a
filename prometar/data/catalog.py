"""The data sets by name: benchmarks in the field's folder layout, their prepared copies, and `textures`.

Adding a benchmark is adding a row to `BENCHMARKS`. Nothing here writes, and no split is ever made up.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from prometar.data.dataset import Dataset, Item, classnames
from prometar.data.manifest import MANIFEST, find_manifest, open_prepared
from prometar.data.sources import FolderSource, TexturesSource, join
from prometar.errors import UserError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Benchmark:
    """A row of the catalog: $DATA/<folder>/<images>/... and $DATA/<folder>/<split>.

    Args:
        name: What `--dataset` takes.
        title: The name in tables.
        folder: Folder below the data root.
        images: Folder of the images below it; the split file's paths are relative to this.
        split: The split file below `folder`: {"train" | "val" | "test": [[path, label, class name], ...]}.
        template: Zero-shot prompt.
    """

    name: str
    title: str
    folder: str
    images: str
    split: str
    template: str


TEXTURES = "textures"
TEXTURES_TITLE = "Textures (embedded)"
TEXTURES_TEMPLATE = "a photo of a {}."

BENCHMARKS: dict[str, Benchmark] = {
    row.name: row
    for row in (
        Benchmark(
            name="dtd",
            title="DescribableTextures",
            folder="dtd",
            images="images",
            split="split_zhou_DescribableTextures.json",
            template="{} texture.",
        ),
    )
}


def known() -> tuple[str, ...]:
    """Every name that `open_dataset` takes."""
    return (*BENCHMARKS, TEXTURES)


def open_dataset(name: str, root: Path | str | None = None) -> Dataset:
    """A data set, ready to draw from.

    Args:
        name: One of `known()`.
        root: The folder (or URI of prepared copies) that holds the data set's folder, `--data-root`. A folder
            with a manifest.json is a prepared copy. `textures` needs none: it is rendered.

    Raises:
        UserError: unknown name; missing root, folder, split file or image; a malformed split file.
    """
    if name not in known():
        raise UserError(f"unknown data set '{name}': known are {', '.join(known())}")
    if root is not None and "://" not in str(root) and not Path(root).is_dir():
        raise UserError(
            f"data root {root} is not a folder: pass --data-root DIR, the folder that holds {name}/"
        )
    if name == TEXTURES:
        return _open_textures(root)
    row = BENCHMARKS[name]
    if root is None:
        raise UserError(
            f"data set '{name}' needs its files: pass --data-root DIR, the folder that holds {row.folder}/"
        )
    uri = join(root, row.folder)
    manifest = find_manifest(uri)
    if manifest is not None:
        return open_prepared(uri, manifest, name=name, title=row.title, template=row.template)
    if "://" in uri:
        raise UserError(
            f"there is no prepared copy at {uri} ({MANIFEST} is missing): run `prometar data prepare`"
        )
    return _open_folder(row, Path(uri))


def _open_textures(root: Path | str | None) -> Dataset:
    from prometar.embedded import textures

    if root is not None:
        uri = join(root, TEXTURES)
        manifest = find_manifest(uri)
        if manifest is not None:
            return open_prepared(
                uri, manifest, name=TEXTURES, title=TEXTURES_TITLE, template=TEXTURES_TEMPLATE
            )
    label = {name: k for k, name in enumerate(textures.CLASSNAMES)}
    splits = {}
    for split in SPLITS:
        names = [(path, path.split("/")[0]) for path in textures.paths(split)]
        splits[split] = tuple(Item(path, label[name], name) for path, name in names)
    return Dataset(TEXTURES, TEXTURES_TITLE, source=TexturesSource(), template=TEXTURES_TEMPLATE, **splits)


def _open_folder(row: Benchmark, folder: Path) -> Dataset:
    hint = f"--data-root must be the folder that holds {row.folder}/"
    images = folder / row.images
    for path, what in ((folder, "data set folder"), (images, "image folder")):
        if not path.is_dir():
            raise UserError(f"{what} {path} is missing: {hint}")
    splits = read_split(folder / row.split)
    _require_images(images, (item.path for split in SPLITS for item in splits[split]))
    return Dataset(row.name, row.title, source=FolderSource(str(images)), template=row.template, **splits)


def read_split(path: Path) -> dict[str, tuple[Item, ...]]:
    """A split file as items.

    Raises:
        UserError: missing, not JSON, not in the format, a path outside the image folder, an image twice.
    """
    try:
        tree = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read split file {path} ({error.strerror}): get it from the benchmark's release; "
            "a split is never made up, since results would not be comparable"
        ) from None
    except ValueError as error:
        raise UserError(f"split file {path} is not JSON: {error}") from None
    if not isinstance(tree, dict) or any(not isinstance(tree.get(split), list) for split in SPLITS):
        raise UserError(f"split file {path} must hold the lists {', '.join(SPLITS)}")
    splits = {s: tuple(_item(row, f"{path}, {s} entry {k}") for k, row in enumerate(tree[s])) for s in SPLITS}
    if not splits["train"]:
        raise UserError(f"split file {path} has no training images")
    items = [item for split in SPLITS for item in splits[split]]
    seen: set[str] = set()
    for item in items:
        if item.path in seen:
            raise UserError(f"split file {path} lists {item.path} twice")
        seen.add(item.path)
    classnames(items)
    return splits


def _item(row: Any, where: str) -> Item:
    if not (
        isinstance(row, list)
        and len(row) == 3
        and isinstance(row[0], str)
        and isinstance(row[1], int)
        and not isinstance(row[1], bool)
        and isinstance(row[2], str)
    ):
        raise UserError(f"split file {where}: expected [path, label, class name], found {str(row)[:80]}")
    path = PurePosixPath(row[0])
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise UserError(f"split file {where}: path '{row[0]}' leaves the image folder")
    return Item(row[0], row[1], row[2])


def _require_images(images: Path, paths: Iterable[str]) -> None:
    """Every listed image exists; one directory listing a folder, so that this takes milliseconds."""
    listed: dict[str, set[str]] = {}
    missing: list[str] = []
    total = 0
    for path in paths:
        total += 1
        folder, _, name = path.rpartition("/")
        if folder not in listed:
            try:
                listed[folder] = set(os.listdir(images / folder))
            except OSError:
                listed[folder] = set()
        if name not in listed[folder]:
            missing.append(path)
    if missing:
        raise UserError(
            f"{len(missing)} of {total} images are missing, the first is {images / missing[0]}: "
            "unpack the archive again, or point --data-root to a complete copy"
        )
