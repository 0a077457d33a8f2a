"""Readers of the benchmarks' image lists: split files, class folders, FGVC-Aircraft's lists."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prometar.data.datasets.benchmarks import CLASSNAMES, VARIANTS, Benchmark, how_to_get
from prometar.data.datasets.dataset import SPLITS, Dataset, FolderSource, Item, Items
from prometar.data.datasets.imagetree import class_folders, labeled_images
from prometar.errors import UserError
from prometar.io.files import read_text
from prometar.io.plain_data import problems_of

Entry = tuple[str, Annotated[int, Field(ge=-(10**9), le=10**9)], str]
"""Path below the image folder, label, class name."""


class SplitFile(BaseModel):
    """Content of a split file. The order of the entries matters, because few-shot draws depend on it."""

    model_config = ConfigDict(strict=True)

    train: list[Entry] = Field(min_length=1)
    val: list[Entry]
    test: list[Entry]


def read_benchmark(row: Benchmark, folder: Path) -> Dataset:
    """Read a benchmark's folder.

    Raises:
        UserError: a file or folder is missing, or does not have the expected layout.
    """
    if not folder.is_dir():
        raise UserError(
            f"Dataset folder {folder} is missing. --data-root must be the folder around {row.folder}/. "
            f"{how_to_get(row)}"
        )
    for part in row.parts:
        if not (folder / part).exists():
            raise UserError(f"{folder / part} is missing. {how_to_get(row, part)}")
    images = folder / row.images
    if row.split_file:
        splits, list_name = read_split_file(folder / row.split_file), f"split file {folder / row.split_file}"
    elif row.splits:
        splits, list_name = _read_class_folders(row, folder), f"folder {images}"
    else:
        splits, list_name = _read_variants(folder), f"{folder / 'images_variant_*.txt'}"
    train, val, test = (splits.get(split, ()) for split in SPLITS)
    return Dataset(row.name, row.title, train, val, test, FolderSource(str(images)), row.template, list_name)


def read_split_file(file: Path) -> dict[str, Items]:
    """Return the items of a JSON file {"train": [[path, label, class name], ...], "val": ..., "test": ...}.

    Raises:
        UserError: the file cannot be read, or has another layout.
    """
    try:
        found = SplitFile.model_validate_json(read_text(file))
    except ValidationError as error:
        raise UserError(f"Invalid split file {file}: {problems_of(error)}") from None
    return {split: tuple(Item(*entry) for entry in entries) for split, entries in found}


def _read_variants(folder: Path) -> dict[str, Items]:
    """Read FGVC-Aircraft: labels are line numbers of variants.txt, and lists contain '<image> <variant>'."""
    label = {name: k for k, (_, name) in enumerate(read_lines(folder / VARIANTS))}
    splits: dict[str, Items] = {}
    for split in SPLITS:
        file = folder / f"images_variant_{split}.txt"
        rows = [(number, *line.partition(" ")[::2]) for number, line in read_lines(file)]
        if unknown := [(number, name) for number, _, name in rows if name not in label]:
            number, name = unknown[0]
            raise UserError(f"{file}, line {number}: '{name}' is not listed in {VARIANTS}.")
        splits[split] = tuple(Item(f"{image}.jpg", label[name], name) for _, image, name in rows)
    return splits


def _read_class_folders(row: Benchmark, folder: Path) -> dict[str, Items]:
    """Read ImageNet or a variant.

    Class folders are named by wnids, ImageNetV2's by line numbers (from 0) of classnames.txt.

    The label is the rank of the folder, from 0 to 999 in ImageNet. The variants A and R contain 200 classes,
    so their labels end at 199. Images are sorted by name. Published code uses the order of the file system,
    so its few-shot draws differ between disks.
    """
    file, names = folder / CLASSNAMES, dict[str, str]()
    for number, line in read_lines(file):
        wnid, _, name = line.partition(" ")
        if not name or wnid in names:
            raise UserError(
                f"{file}, line {number}: expected '<wnid> <name>' with a new wnid, found '{line}'."
            )
        names[wnid] = name
    if row.numbered:
        names = {str(k): name for k, name in enumerate(names.values())}
    images = folder / row.images
    folders = class_folders(*(images / parent for parent in row.splits.values()))
    if unknown := sorted(set(folders) - set(names)):
        raise UserError(f"{images}: folder {unknown[0]} is not listed in {file}.")
    folders.sort(key=int if row.numbered else str)
    return {
        split: labeled_images(
            images, [f"{PurePosixPath(parent, each)}" for each in folders], [names[each] for each in folders]
        )
        for split, parent in row.splits.items()
    }


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the number (from 1) and the stripped text of each line that is not blank.

    Raises:
        UserError: the file cannot be read, or is not UTF-8 text.
    """
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if line.strip():
            yield number, line.strip()
