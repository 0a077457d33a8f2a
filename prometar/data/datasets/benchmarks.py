"""Locations, published sizes and download sources of the fifteen benchmarks (benchmarks.yaml)."""

from importlib import resources

from pydantic import Field

from prometar.io.plain_data import PlainData
from prometar.io.yamltext import parse_yaml

TEMPLATE = "a photo of a {}."
CLASSNAMES = "classnames.txt"
AIRCRAFT_VARIANTS = "variants.txt"


class Archive(PlainData):
    """Public archive of a benchmark's images.

    Args:
        member: Folder in `parent`. Its presence in the benchmark's folder marks a complete download.
        parent: Folder in the archive. Its content is moved to the benchmark's folder.
        digest: Expected digest, such as "md5:<hex>". Empty if unknown.
    """

    url: str
    member: str
    parent: str = "."
    digest: str = ""


class Benchmark(PlainData):
    """Entry of benchmarks.yaml.

    Args:
        name: Name for `--dataset`.
        title: Name in tables.
        folder: Folder below the data root.
        images: Image folder, relative to `folder`.
        split_file: JSON file that lists the images. Empty for class folders and for FGVCAircraft's lists.
        split_digest: sha256 of CoOp's split file. Empty if unknown.
        splits: Parent of the class folders of each split, relative to `images`.
        numbered: True if class folders are named by line numbers of classnames.txt instead of WordNet IDs.
        classes: Published number of classes.
        sizes: Published number of images per split.
        template, templates: Zero-shot prompt, and other templates by name (see `Dataset`).
        archives: Public archives of the images.
        instructions: How to obtain the images if `archives` is empty.
        variant: True for the ImageNet variants: test sets with ImageNet's classes but other kinds of images.
    """

    name: str
    title: str
    folder: str
    images: str = "images"
    split_file: str = ""
    split_digest: str = ""
    splits: dict[str, str] = Field(default={})
    numbered: bool = False
    classes: int
    sizes: dict[str, int]
    template: str = TEMPLATE
    templates: dict[str, str] = Field(default={})
    archives: tuple[Archive, ...] = ()
    instructions: str = ""
    variant: bool = False

    @property
    def required_paths(self) -> tuple[str, ...]:
        """Required files and folders, relative to `folder`."""
        if self.split_file:
            return (self.split_file,) if self.images == "." else (self.images, self.split_file)
        if self.splits:
            folders = (f"{self.images}/{below}".removesuffix("/.") for below in self.splits.values())
            return (*folders, CLASSNAMES)
        return (self.images, AIRCRAFT_VARIANTS, *(f"images_variant_{split}.txt" for split in self.sizes))


_TABLE = (resources.files("prometar.data.datasets") / "benchmarks.yaml").read_text("utf-8")
BENCHMARKS: dict[str, Benchmark] = {
    name: Benchmark(name=name, **row) for name, row in parse_yaml(_TABLE, where="benchmarks.yaml").items()
}
"""Benchmarks by name."""

_COOP = "CoOp (github.com/KaiyangZhou/CoOp, DATASETS.md)"


def how_to_get(benchmark: Benchmark, path: str = "") -> str:
    """Return instructions for obtaining a required path of a benchmark, or its images if `path` is ""."""
    download = f"Run `prometar data download {benchmark.name} --to DIR`"
    if path and path == benchmark.split_file:
        return f"{download}, or get the file from {_COOP}."
    if path == CLASSNAMES:
        copy = f"Copy {CLASSNAMES} from the folder imagenet/ to this folder."
        return copy if benchmark.variant else f"Get the file from {_COOP}."
    return f"{download}." if benchmark.archives else benchmark.instructions
