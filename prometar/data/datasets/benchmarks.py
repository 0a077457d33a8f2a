"""Benchmark datasets used by CoOp: folders, published sizes and download sources (benchmarks.yaml)."""

from importlib import resources

from pydantic import Field

from prometar.io.strict_model import StrictModel
from prometar.io.yamltext import parse_yaml

TEMPLATE = "a photo of a {}."
CLASSNAMES_FILE = "classnames.txt"
AIRCRAFT_CLASSES_FILE = "variants.txt"  # class names of FGVC Aircraft


class Archive(StrictModel):
    """Public archive of a benchmark.

    Args:
        urls: Addresses of the same file, the official one first.
        inner: Archive in this archive that contains the images. Empty if there is none.
        parent: Folder in the archive. All of its content is moved to the benchmark's folder.
        main_folder: Folder in `parent` that is moved last, so that its presence marks a complete download.
        rename: Name of the main folder in the benchmark's folder. Empty if it has the same name.
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
        digest: Expected digest, such as "sha256:<hex>". Empty if unknown. The address contains a commit.
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
        images = self.image_folder
        if self.split_file:
            return (self.split_file,) if images == "." else (images, self.split_file)
        if self.split_folders:
            folders = (f"{images}/{folder}".removesuffix("/.") for folder in self.split_folders.values())
            return (*folders, CLASSNAMES_FILE)
        lists = [f"images_variant_{split}.txt" for split in self.sizes]
        return (images, AIRCRAFT_CLASSES_FILE, *lists)


_YAML = (resources.files("prometar.data.datasets") / "benchmarks.yaml").read_text("utf-8")
BENCHMARKS: dict[str, Benchmark] = {
    name: Benchmark(name=name, **entry) for name, entry in parse_yaml(_YAML, where="benchmarks.yaml").items()
}

_COOP = "CoOp (github.com/KaiyangZhou/CoOp, DATASETS.md)"


def how_to_get(benchmark: Benchmark, path: str = "") -> str:
    """Return instructions for obtaining a required path of a benchmark, or all images if `path` is ""."""
    download = f"Run `prometar data download {benchmark.name} --to DIR`"
    if path and path == benchmark.split_file:
        return f"{download}, or get the file from {_COOP}."
    if path == CLASSNAMES_FILE:
        if benchmark.imagenet_variant:
            return f"Copy {CLASSNAMES_FILE} from the folder imagenet/."
        return f"Get the file from {_COOP}."
    return f"{download}." if benchmark.copy_file else benchmark.instructions
