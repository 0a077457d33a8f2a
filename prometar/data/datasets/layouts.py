"""Readers of the benchmarks' image lists: split files, class folders, FGVC-Aircraft's lists."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prometar.data.datasets.benchmarks import AIRCRAFT_CLASSES_FILE, CLASSNAMES_FILE, Benchmark, how_to_get
from prometar.data.datasets.dataset import SPLITS, Dataset, FolderSource, Item, Items
from prometar.data.datasets.imagetree import class_folders, labeled_images
from prometar.errors import UserError
from prometar.io.files import read_text
from prometar.io.strict_model import problems_of

Label = Annotated[int, Field(ge=-(10**9), le=10**9)]  # fits in int64
Entry = tuple[str, Label, str]
"""Path below the image folder, label, and class name."""


class SplitFile(BaseModel):
    """Content of a split file. The order of the entries matters, because few-shot samples depend on it."""

    model_config = ConfigDict(strict=True)

    train: list[Entry] = Field(min_length=1)
    val: list[Entry]
    test: list[Entry]


def read_benchmark(benchmark: Benchmark, folder: Path) -> Dataset:
    """Return the dataset of a benchmark, without opening the images.

    Raises:
        UserError: a file or folder is missing, or does not have the expected layout.
    """
    if not folder.is_dir():
        raise UserError(
            f"Dataset folder {folder} is missing. --data-root must be the folder that contains "
            f"{benchmark.folder}/. {how_to_get(benchmark)}"
        )
    for path in benchmark.required_paths:
        if not (folder / path).exists():
            raise UserError(f"{folder / path} is missing. {how_to_get(benchmark, path)}")
    image_folder = folder / benchmark.image_folder
    if benchmark.split_file:
        split_file = folder / benchmark.split_file
        splits = read_split_file(split_file)
        items_origin = f"split file {split_file}"
    elif benchmark.split_folders:
        splits = _read_class_folders(benchmark, folder)
        items_origin = f"folder {image_folder}"
    else:
        splits = _read_aircraft(folder)
        items_origin = f"{folder / 'images_variant_*.txt'}"
    return Dataset(
        benchmark.name,
        benchmark.title,
        train=splits.get("train", ()),
        val=splits.get("val", ()),
        test=splits.get("test", ()),
        source=FolderSource(str(image_folder)),
        template=benchmark.template,
        items_origin=items_origin,
        exif_rotation=False,
    )


def read_split_file(file: Path) -> dict[str, Items]:
    """Return the items of a JSON file {"train": [[path, label, class name], ...], "val": ..., "test": ...}.

    Raises:
        UserError: the file cannot be read, or does not have this layout.
    """
    try:
        content = SplitFile.model_validate_json(read_text(file))
    except ValidationError as error:
        raise UserError(f"Invalid split file {file}: {problems_of(error)}") from None
    splits = {"train": content.train, "val": content.val, "test": content.test}
    return {split: tuple(Item(*entry) for entry in entries) for split, entries in splits.items()}


def _read_aircraft(folder: Path) -> dict[str, Items]:
    """Return the splits of FGVC-Aircraft, whose lists have lines '<image> <variant>'.

    The classes are the variants of the aircraft. The first variant in variants.txt has label 0.
    """
    variants = [name for _, name in read_lines(folder / AIRCRAFT_CLASSES_FILE)]
    labels = {name: label for label, name in enumerate(variants)}
    splits: dict[str, Items] = {}
    for split in SPLITS:
        file = folder / f"images_variant_{split}.txt"
        items: list[Item] = []
        for number, line in read_lines(file):
            image, _, name = line.partition(" ")
            if name not in labels:
                raise UserError(f"{file}, line {number}: '{name}' is not listed in {AIRCRAFT_CLASSES_FILE}.")
            items.append(Item(f"{image}.jpg", labels[name], name))
        splits[split] = tuple(items)
    return splits


def _read_class_folders(benchmark: Benchmark, folder: Path) -> dict[str, Items]:
    """Return the splits of ImageNet or of one of its variants.

    Class folders are named by WordNet ID (wnid). In ImageNetV2, they are named by the index of the class in
    classnames.txt.

    A label is the position of the class folder in sorted order, from 0 to 999. ImageNet-A and ImageNet-R have
    200 classes, with labels from 0 to 199. Images are sorted by name. In the published code, their order, and
    so the few-shot sample, depends on the file system.
    """
    file = folder / CLASSNAMES_FILE
    names: dict[str, str] = {}
    for number, line in read_lines(file):
        wnid, _, name = line.partition(" ")
        if not name or wnid in names:
            raise UserError(f"{file}, line {number}: expected '<unique wnid> <name>', found '{line}'.")
        names[wnid] = name
    if benchmark.numbered:
        names = {str(index): name for index, name in enumerate(names.values())}

    image_folder = folder / benchmark.image_folder
    split_folders = [image_folder / parent for parent in benchmark.split_folders.values()]
    folders = class_folders(*split_folders)
    unknown = sorted(set(folders) - set(names))
    if unknown:
        raise UserError(f"{image_folder}: folder {unknown[0]} is not listed in {file}.")
    if benchmark.numbered:
        folders.sort(key=int)

    classnames = [names[name] for name in folders]
    splits: dict[str, Items] = {}
    for split, parent in benchmark.split_folders.items():
        paths = [str(PurePosixPath(parent, name)) for name in folders]
        splits[split] = labeled_images(image_folder, paths, classnames)
    return splits


def read_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the number (from 1) and the stripped text of each line that is not blank.

    Raises:
        UserError: the file cannot be read, or is not UTF-8 text.
    """
    for number, line in enumerate(read_text(file).splitlines(), 1):
        text = line.strip()
        if text:
            yield number, text
