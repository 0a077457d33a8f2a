"""Open datasets by name: benchmarks, rendered (drawn) datasets, your own images, and custom loaders.

Benchmarks have their published splits. Your own images are split automatically if they have no split folders.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from prometar.data.datasets.imagetree import OWN_IMAGES, OWN_IMAGES_TITLE, read_tree
from prometar.data.datasets.layouts import read_benchmark
from prometar.data.datasets.prepared import MANIFEST, find_manifest, open_prepared
from prometar.embedded.datasets import RENDERED
from prometar.embedded.rendered import RenderedSet
from prometar.errors import UserError
from prometar.io.custom import convert_errors, instantiate, is_custom
from prometar.io.files import is_storable, resolve_path
from prometar.io.stores import join, masked

BUILT_IN_NAMES = (*BENCHMARKS, *RENDERED, OWN_IMAGES)
"""Names that `--dataset` accepts besides `package.module:Name`."""


def title_of(name: str) -> str:
    """Return the title of a built-in dataset for tables."""
    return OWN_IMAGES_TITLE if name == OWN_IMAGES else (BENCHMARKS.get(name) or RENDERED[name]).title


def file_name(name: str) -> str:
    """Return a dataset's name in a form that a file name can contain.

    Example:
        >>> file_name("dtd"), file_name("mine:flowers")
        ('dtd', 'mine.flowers')
    """
    return name.replace(":", ".")


def require_name(name: str) -> None:
    """Require a built-in name or `package.module:Name`. The module is not imported.

    Raises:
        UserError: the name is neither.
    """
    if name not in BUILT_IN_NAMES and not is_custom(name):
        known = ", ".join(BUILT_IN_NAMES)
        raise UserError(f"Unknown dataset '{name}'. Use one of {known}, or a custom package.module:Name.")


def default_root(*names: str) -> str | None:
    """Return the default data root: PROMETAR_DATA or `data`, or None if none of `names` is a benchmark.

    Example:
        >>> default_root("cells"), default_root("cells", "dtd")
        (None, 'data')
    """
    return (os.environ.get("PROMETAR_DATA") or "data") if set(names) & BENCHMARKS.keys() else None


def dataset_location(name: str, root: Path | str) -> str:
    """Return the folder or URI of a dataset below a data root. For `folder` (own images), return the root."""
    if name == OWN_IMAGES:
        return str(root)
    return join(root, BENCHMARKS[name].folder if name in BENCHMARKS else file_name(name))


def is_in_dataset_folder(folder: Path, name: str, root: Path | str | None) -> bool:
    """Return True if `folder` is the local folder of a dataset or lies inside it."""
    if root is None or "://" in str(root):
        return False
    return resolve_path(folder).is_relative_to(resolve_path(dataset_location(name, root)))


def require_outside_dataset(out: Path, name: str, root: Path | str | None) -> None:
    """Raise a UserError if results in `out` would be read as a class of `--dataset folder`."""
    if name == OWN_IMAGES and is_in_dataset_folder(out, name, root) and find_manifest(str(root)) is None:
        raise UserError(f"{resolve_path(out)} lies in the dataset's own folder. Choose another --out.")


def open_dataset(name: str, root: Path | str | None = None, args: Mapping[str, object] = {}) -> Dataset:
    """Open a dataset and check that its image list is valid and that no image file is missing.

    Args:
        name: One of `BUILT_IN_NAMES`, or a custom loader `package.module:Name`, which is called with `root`
            and returns a `Dataset`.
        root: Data root (`--data-root`): a folder or URI that contains the dataset's folder. For `folder`
            (your own images), the folder itself. Not used by rendered datasets. If the dataset's folder
            contains a manifest.json, the Parquet files that it lists are read.
        args: Arguments of a custom loader that is a class.

    Raises:
        UserError: the name is unknown, the data root or an image is missing, or the image list is invalid.
    """
    dataset = open_unverified(name, root, args)
    for error in image_list_errors(dataset):
        raise UserError(f"{error}. Fix the list. `prometar data check {name}` lists all errors.")
    if isinstance(dataset.source, FolderSource):
        missing = _missing_images(Path(dataset.source.folder), dataset.items)
        if missing:
            instructions = BENCHMARKS[name].instructions if name in BENCHMARKS else ""
            fix = instructions or "Restore them, or pass --data-root with a complete copy."
            raise UserError(
                f"{len(missing)} of {len(dataset.items)} images are missing. The first is {missing[0]}. "
                f"{fix} `prometar data check {name}` lists all missing images."
            )
    return dataset


def open_unverified(name: str, root: Path | str | None, args: Mapping[str, object] = {}) -> Dataset:
    """Open a dataset like `open_dataset`, without checking its image list or that its images exist."""
    require_name(name)
    if is_custom(name):
        return _open_custom(name, None if root is None else str(root), args)
    if name in RENDERED:
        return rendered_dataset(RENDERED[name], RenderedSource(name))
    if root is None:
        raise UserError(f"The dataset '{name}' needs a data root. {_data_root_advice(name)}")
    if "://" not in str(root) and not Path(root).is_dir():
        raise UserError(f"The data root {root} is not a folder. {_data_root_advice(name)}")
    uri, benchmark = dataset_location(name, root), BENCHMARKS.get(name)
    template = benchmark.template if benchmark else TEMPLATE
    manifest = find_manifest(uri)
    if manifest is not None:
        dataset = open_prepared(uri, manifest, name=name, title=title_of(name), template=template)
    elif "://" in uri:
        raise UserError(
            f"{masked(uri)} has no prepared copy ({MANIFEST} is missing). Run `prometar data prepare`."
        )
    else:
        dataset = read_benchmark(benchmark, Path(uri)) if benchmark else read_tree(Path(uri))
    return replace(dataset, templates=benchmark.templates) if benchmark else dataset


def _open_custom(name: str, root: str | None, args: Mapping[str, object]) -> Dataset:
    loader = instantiate(name, args)
    with convert_errors(name):
        dataset = loader(root)
    if not isinstance(dataset, Dataset):
        raise UserError(f"{name} must return a Dataset, got {type(dataset).__name__}. See docs/extending.md.")
    for item in dataset.items:
        if [type(item), *map(type, (item.path, item.label, item.classname))] != [Item, str, int, str]:
            expected = "Item(path: str, label: int, classname: str)"
            raise UserError(f"{name} must return images as {expected}, got {item!a:.200}.")
    for template in (dataset.template, *dataset.templates.values()):
        if not is_template(template):
            raise UserError(
                f"{name} must return templates with one {{}} for the class name, got {template!a:.80}."
            )
    return replace(dataset, name=name, list_origin=dataset.list_origin or name)


def image_list_errors(dataset: Dataset) -> Iterator[str]:
    """Yield errors in an image list: bad or repeated paths, bad class names, labels with several names."""
    seen: dict[str, str] = {}
    names: dict[int, str] = {}
    for split, items in dataset.splits.items():
        for item in items:
            if item.path in seen:
                yield f"{dataset.list_origin} lists {item.path} twice ({seen[item.path]}, {split})"
            elif not is_storable(item.path):
                yield f"{dataset.list_origin} lists {item.path!a}, which is not UTF-8 or contains a NUL"
            elif item.path.startswith("/") or ".." in item.path.split("/"):
                yield f"{dataset.list_origin} lists {item.path}, which points outside the image folder"
            seen[item.path] = split
            classname = names.setdefault(item.label, item.classname)
            if classname != item.classname:
                both = f"both '{classname}' and '{item.classname}'"
                yield f"{dataset.list_origin} calls label {item.label} {both} (at {item.path})"
    for label, name in names.items():
        if reason := invalid_name_reason(name):
            yield f"{dataset.list_origin} calls label {label} {name!a}, which {reason}"


def _data_root_advice(name: str) -> str:
    if name == OWN_IMAGES:
        return "Pass --data-root DIR. DIR must contain class folders, or train/ and test/ with class folders."
    fix = f"Pass --data-root DIR, the folder that contains {dataset_location(name, '')}/"
    return f"{fix}, or run `prometar data download {name}`." if name in BENCHMARKS else f"{fix}."


def rendered_dataset(rendered: RenderedSet[Any], source: Source) -> Dataset:
    """Build the `Dataset` (image lists) of a `RenderedSet`, whose images `source` renders or reads."""
    labels = {name: label for label, name in enumerate(rendered.classnames)}

    def items(split: str) -> Iterator[Item]:
        for path in rendered.paths(split):
            classname = path.split("/")[0]
            yield Item(path, labels[classname], classname)

    train, val, test = (tuple(items(split)) for split in SPLITS)
    name, title, template = rendered.name, rendered.title, rendered.template
    return Dataset(name, title, train, val, test, source, template, "the renderer")


def _missing_images(image_folder: Path, items: Sequence[Item]) -> list[Path]:
    """Return the paths of missing image files. Listing folders is faster than checking each file."""
    listed: dict[str, set[str]] = {}
    missing = []
    for item in items:
        folder, _, name = item.path.rpartition("/")
        if folder not in listed:
            path = image_folder / folder
            listed[folder] = set(os.listdir(path)) if path.is_dir() else set()
        if name not in listed[folder]:
            missing.append(image_folder / item.path)
    return missing
