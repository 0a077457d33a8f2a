"""Locations, published sizes and download sources of the fifteen benchmarks (benchmarks.yaml)."""

from importlib import resources

from pydantic import Field

from prometar.io.plain_data import PlainData
from prometar.io.yamltext import parse_yaml

TEMPLATE = "a photo of a {}."
CLASSNAMES = "classnames.txt"
VARIANTS = "variants.txt"


class Archive(PlainData):
    """Public archive of a benchmark's images.

    Args:
        key: Folder in the archive. The folder and its siblings are moved to the benchmark's folder.
        inside: Folder of the archive that contains `key`.
        digest: Expected digest, such as "md5:<hex>". Empty if unknown.
    """

    url: str
    key: str
    inside: str = "."
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
        numbered: True if class folders are named by line numbers of classnames.txt instead of wnids.
        classes: Published number of classes.
        sizes: Published number of images per split.
        template: Zero-shot prompt.
        templates: Other templates by name (see `Dataset`).
        archives: Public archives of the images.
        instructions: How to obtain the images if `archives` is empty.
        variant: True for test sets that apply ImageNet's classes to another distribution.
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
    def parts(self) -> tuple[str, ...]:
        """Required files and folders, relative to `folder`."""
        if self.split_file:
            return (self.split_file,) if self.images == "." else (self.images, self.split_file)
        if self.splits:
            folders = (f"{self.images}/{below}".removesuffix("/.") for below in self.splits.values())
            return (*folders, CLASSNAMES)
        return (self.images, VARIANTS, *(f"images_variant_{split}.txt" for split in self.sizes))


_TABLE = (resources.files("prometar.data.datasets") / "benchmarks.yaml").read_text("utf-8")
BENCHMARKS: dict[str, Benchmark] = {
    name: Benchmark(name=name, **row) for name, row in parse_yaml(_TABLE, where="benchmarks.yaml").items()
}
"""Benchmarks by name."""

_COOP = "CoOp (github.com/KaiyangZhou/CoOp, DATASETS.md)"


def how_to_get(row: Benchmark, part: str = "") -> str:
    """Return instructions for obtaining a part of a benchmark, or its images if `part` is empty."""
    download = f"Run `prometar data download {row.name} --to DIR`"
    if part and part == row.split_file:
        return f"{download}, or get the file from {_COOP}."
    if part == CLASSNAMES:
        return "Copy imagenet/classnames.txt." if row.variant else f"Get the file from {_COOP}."
    return f"{download}." if row.archives else row.instructions
