"""The fifteen benchmarks: location below a data root, published sizes, and sources (benchmarks.yaml)."""

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
        key: Folder in it, which is placed in the benchmark's folder with everything beside it.
        inside: Folder of the archive that contains `key`.
        digest: Such as "md5:<hex>"; empty if it is not known.
    """

    url: str
    key: str
    inside: str = "."
    digest: str = ""


class Benchmark(PlainData):
    """A row of benchmarks.yaml.

    Args:
        name: Name for `--dataset`.
        title: Name in tables.
        folder: Folder below the data root.
        images: Folder of the images below it.
        split_file: JSON file that lists the images. Without one, folders or the lists of FGVCAircraft do.
        split_digest: sha256 of CoOp's split file; empty if it is not known.
        splits: Folders of class folders, by split, below `images`.
        numbered: True if class folders are line numbers of classnames.txt, not wnids.
        classes, sizes: Published numbers of classes, and of images per split.
        template: Zero-shot prompt.
        wordings: Other templates that methods use (see `Dataset`).
        archives: Public archives of the images.
        by_hand: Instructions if there are none.
        variant: True if it tests ImageNet's classes under another distribution.
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
    wordings: dict[str, str] = Field(default={})
    archives: tuple[Archive, ...] = ()
    by_hand: str = ""
    variant: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """Files and folders below the benchmark's folder that list its images."""
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

_COOP = "the release of CoOp (github.com/KaiyangZhou/CoOp, DATASETS.md)"


def how_to_get(row: Benchmark, part: str = "") -> str:
    """Return instructions for obtaining a part of a benchmark, by default its images."""
    if part and part == row.split_file:
        return f"`prometar data download {row.name} --to DIR` gets it, or get it from {_COOP}"
    if part == CLASSNAMES:
        return "copy it from imagenet/classnames.txt" if row.variant else f"get it from {_COOP}"
    return f"`prometar data download {row.name} --to DIR` gets it" if row.archives else row.by_hand
