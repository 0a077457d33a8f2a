"""Benchmark datasets used by CoOp: folders, published sizes and download sources (benchmarks.yaml)."""

from importlib import resources
from pathlib import PurePosixPath

from pydantic import Field

from prometar.io.strict_model import StrictModel
from prometar.io.yamltext import parse_yaml

TEMPLATE = "a photo of a {}."
CLASSNAMES_FILE = "classnames.txt"
AIRCRAFT_CLASSES_FILE = "variants.txt"  # class names of FGVC Aircraft


class Archive(StrictModel):
    """Public archive of a benchmark's images.

    Args:
        urls: Addresses of the same file, the official address first.
        inner: Archive that lies in the downloaded archive and contains the images. Empty if there is none.
        parent: Folder in the archive. All of its content is moved to the benchmark's folder.
        main_folder: Folder in `parent` that is moved last, so that its presence marks a complete download.
        rename: New name of the main folder in the benchmark's folder. Empty if it keeps its name.
        digest: Expected digest, such as "md5:<hex>". Empty if unknown.
    """

    urls: tuple[str, ...] = Field(min_length=1)
    inner: str = ""
    main_folder: str
    rename: str = ""
    parent: str = "."
    digest: str = ""

    @property
    def target(self) -> str:
        """Name of the main folder in the benchmark's folder."""
        return self.rename or self.main_folder


class Copy(StrictModel):
    """Copy of a whole benchmark, with its split file or class list, at `download.COPIES_URL`.

    Args:
        file: Name of the archive.
        folders: Folders of images.
        digest: Expected digest, such as "sha256:<hex>". Empty if unknown.
    """

    file: str
    folders: tuple[str, ...] = Field(min_length=1)
    digest: str = ""


class Benchmark(StrictModel):
    """Entry of benchmarks.yaml.

    Args:
        name: Name for `--dataset`.
        title: Name in tables.
        folder: Folder below the data root.
        image_folder: Folder of the images, relative to `folder`.
        split_file: JSON file that lists the images. Empty if class folders or text files list them.
        split_digest: Digest of CoOp's split file, such as "sha256:<hex>". Empty if unknown.
        split_folders: For each split, the folder that contains the class folders. Relative to `image_folder`.
        numbered: True if class folders are named 0, 1, ... in the order of classnames.txt, not by WordNet ID.
        num_classes: Published number of classes.
        sizes: Published number of images per split.
        template, templates: Template of zero-shot prompts, and other templates by name (see `Dataset`).
        archives: Public archives of the images.
        copy_file: Copy of the whole benchmark, or None if there is none.
        instructions: How to obtain the images if `copy_file` is None.
        imagenet_variant: True for a test set with new images of all or some of ImageNet's classes.
    """

    name: str
    title: str
    folder: str
    image_folder: str = "images"
    split_file: str = ""
    split_digest: str = ""
    split_folders: dict[str, str] = Field(default={})
    numbered: bool = False
    num_classes: int
    sizes: dict[str, int]
    template: str = TEMPLATE
    templates: dict[str, str] = Field(default={})
    archives: tuple[Archive, ...] = ()
    copy_file: Copy | None = None
    instructions: str = ""
    imagenet_variant: bool = False

    @property
    def required_paths(self) -> tuple[str, ...]:
        """Required files and folders, relative to `folder`."""
        if self.split_file and self.image_folder == ".":
            return (self.split_file,)
        if self.split_file:
            return (self.image_folder, self.split_file)
        if self.split_folders:
            paths = [PurePosixPath(self.image_folder, folder) for folder in self.split_folders.values()]
            return (*map(str, paths), CLASSNAMES_FILE)
        lists = [f"images_variant_{split}.txt" for split in self.sizes]
        return (self.image_folder, AIRCRAFT_CLASSES_FILE, *lists)


def _read_benchmarks() -> dict[str, Benchmark]:
    """Return the benchmarks in benchmarks.yaml by name."""
    file = resources.files("prometar.data.datasets") / "benchmarks.yaml"
    entries = parse_yaml(file.read_text("utf-8"), where="benchmarks.yaml")
    return {name: Benchmark(name=name, **entry) for name, entry in entries.items()}


BENCHMARKS = _read_benchmarks()
"""All benchmarks by name."""

_COOP = "CoOp (github.com/KaiyangZhou/CoOp, DATASETS.md)"


def how_to_get(benchmark: Benchmark, path: str = "") -> str:
    """Return instructions for obtaining a required path of a benchmark, or all images if `path` is ""."""
    download = f"Run `prometar data download {benchmark.name} --to DIR`"
    if path and path == benchmark.split_file:
        return f"{download}, or get the file from {_COOP}."
    if path == CLASSNAMES_FILE and benchmark.imagenet_variant:
        return f"Copy {CLASSNAMES_FILE} from the folder imagenet/."
    if path == CLASSNAMES_FILE:
        return f"Get the file from {_COOP}."
    if benchmark.copy_file is None:
        return benchmark.instructions
    return f"{download}."
