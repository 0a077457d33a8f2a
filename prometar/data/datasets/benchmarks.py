"""The fifteen benchmarks as data: where their images lie below a data root, and what was published of them.

Folders, split files and sizes are those of CoOp (Zhou et al., IJCV 2022), which the field's papers share.
Adding a benchmark is adding a row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from prometar.data.datasets.layouts import (
    ImageLists,
    Layout,
    NumberedFolders,
    SplitFile,
    VariantLists,
    WnidFolders,
)
from prometar.data.datasets.listing import SPLITS
from prometar.errors import UserError

TEMPLATE = "a photo of a {}."


class Sizes(NamedTuple):
    """Published number of images a split; 0 where there is no such split."""

    train: int
    val: int
    test: int


@dataclass(frozen=True)
class Archive:
    """A public archive of a benchmark's images.

    Args:
        url: http or https.
        key: What must be in it, and is then below the benchmark's folder.
        md5: As torchvision.datasets knows it; None where it knows none.
        inside: The folder in the archive that `key` and what lies beside it are in.
    """

    url: str
    key: str
    md5: str | None = None
    inside: str = "."


@dataclass(frozen=True)
class Benchmark:
    """A row of the table: $DATA/<folder>/... in a layout.

    Args:
        name: What `--dataset` takes.
        title: The name in tables.
        folder: Folder below the data root.
        layout: How it lists its images.
        classes, sizes: As published.
        template: Zero-shot prompt (default `TEMPLATE`).
        wordings: Other templates that methods hold text to, where they differ from it (see `Dataset`).
        archives: Where the images can be downloaded.
        split_sha256: Of the layout's split file, CoOp's; None where its digest is not known.
        official: The dataset's own lists, in its archive: another split than CoOp's.
        by_hand: Where the images come from if there is no archive.
        variant_of: The benchmark whose classes it tests under another distribution.
    """

    name: str
    title: str
    folder: str
    layout: Layout
    classes: int
    sizes: Sizes
    template: str = TEMPLATE
    archives: tuple[Archive, ...] = ()
    split_sha256: str | None = None
    official: ImageLists | None = None
    by_hand: str = ""
    wordings: Mapping[str, str] = field(default_factory=dict)
    variant_of: str = ""


_VGG = "https://www.robots.ox.ac.uk/~vgg/data"

# md5: the class of the same name in torchvision.datasets (0.28); EuroSAT's is that of the mirror's equal file
# split_sha256: where the copy (`download.PUBLIC_SPLITS`) was looked at (it has the published sizes) and
# another project's record of its files from CoOp agrees
_ROWS = (
    Benchmark(
        name="imagenet",
        title="ImageNet",
        folder="imagenet",
        layout=WnidFolders("images", (("train", "train"), ("test", "val"))),
        classes=1000,
        sizes=Sizes(1_281_167, 0, 50_000),
        by_hand="get ILSVRC 2012 from image-net.org: a folder a wnid, in images/train/ and in images/val/",
    ),
    Benchmark(
        name="caltech101",
        title="Caltech101",
        folder="caltech-101",
        layout=SplitFile("101_ObjectCategories", "split_zhou_Caltech101.json"),
        classes=100,
        sizes=Sizes(4_128, 1_649, 2_465),
        split_sha256="52ce83205ff8ff8a1a18119aad6376120ae35c36e783a984bc560cbf10e73fa5",
        by_hand="get caltech-101.zip from data.caltech.edu/records/mzrjq-6wc02 and unpack the archive in it",
    ),
    Benchmark(
        name="oxford_pets",
        title="OxfordPets",
        folder="oxford_pets",
        layout=SplitFile("images", "split_zhou_OxfordPets.json"),
        template="a photo of a {}, a type of pet.",
        classes=37,
        sizes=Sizes(2_944, 736, 3_669),
        split_sha256="d7f3ffe65b3919f95132e51422894ae18686b83c331fd8c0adcdc3dc2de6301e",
        wordings={"name_last": "a type of pet, a photo of a {}."},
        archives=(
            Archive(f"{_VGG}/pets/data/images.tar.gz", "images", "5c4f3ee8e5d25df40f4fd59a7f44e54c"),
            Archive(
                f"{_VGG}/pets/data/annotations.tar.gz", "annotations", "95a8c909bbe2e81eed6a22bccdf3f68f"
            ),
        ),
    ),
    Benchmark(
        name="stanford_cars",
        title="StanfordCars",
        folder="stanford_cars",
        layout=SplitFile(".", "split_zhou_StanfordCars.json"),
        classes=196,
        sizes=Sizes(6_509, 1_635, 8_041),
        split_sha256="40acee7aa65c8e4727a32d90e884b7c3f8960b523422317e163f7af65432959d",
        by_hand="its own links are dead: get cars_train/ and cars_test/ from a mirror of the benchmarks",
    ),
    Benchmark(
        name="oxford_flowers",
        title="Flowers102",
        folder="oxford_flowers",
        layout=SplitFile("jpg", "split_zhou_OxfordFlowers.json"),
        template="a photo of a {}, a type of flower.",
        classes=102,
        sizes=Sizes(4_093, 1_633, 2_463),
        split_sha256="2f50c42fc1a17ca13c271cb4269b1347bdb43d2be672e34f74a4e4cbfbcca794",
        wordings={"name_last": "a type of flower, a photo of a {}."},
        archives=(Archive(f"{_VGG}/flowers/102/102flowers.tgz", "jpg", "52808999861908f626f3c1f4e79d11fa"),),
    ),
    Benchmark(
        name="food101",
        title="Food101",
        folder="food-101",
        layout=SplitFile("images", "split_zhou_Food101.json"),
        template="a photo of {}, a type of food.",
        classes=101,
        sizes=Sizes(50_500, 20_200, 30_300),
        official=ImageLists("images", {"train": "meta/train.txt", "test": "meta/test.txt"}, ending=".jpg"),
        wordings={"name_last": "a type of food, a photo of {}."},
        archives=(
            Archive(
                "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                "images",
                "85eeb15f3717b99a5da872d97d918f87",
                inside="food-101",
            ),
        ),
    ),
    Benchmark(
        name="fgvc_aircraft",
        title="FGVCAircraft",
        folder="fgvc_aircraft",
        layout=VariantLists(),
        template="a photo of a {}, a type of aircraft.",
        classes=100,
        sizes=Sizes(3_334, 3_333, 3_333),
        wordings={"name_last": "a type of aircraft, a photo of a {}."},
        archives=(
            Archive(
                f"{_VGG}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
                "images",
                inside="fgvc-aircraft-2013b/data",
            ),
        ),
    ),
    Benchmark(
        name="sun397",
        title="SUN397",
        folder="sun397",
        layout=SplitFile("SUN397", "split_zhou_SUN397.json"),
        classes=397,
        sizes=Sizes(15_880, 3_970, 19_850),
        archives=(
            Archive(
                "http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",
                "SUN397",
                "8ca2778205c41d23104230ba66911c7a",
            ),
        ),
    ),
    Benchmark(
        name="dtd",
        title="DescribableTextures",
        folder="dtd",
        layout=SplitFile("images", "split_zhou_DescribableTextures.json"),
        template="{} texture.",
        classes=47,
        sizes=Sizes(2_820, 1_128, 1_692),
        split_sha256="f26ebeccd2b58e68d70f07a0dc39fe49bf7b69024bac34396b954dfd87969c38",
        official=ImageLists("images", {split: f"labels/{split}1.txt" for split in SPLITS}),
        wordings={"photo": "a photo of a {}, a type of texture.", "name_last": "a texture of {}."},
        archives=(
            Archive(
                f"{_VGG}/dtd/download/dtd-r1.0.1.tar.gz",
                "images",
                "fff73e5086ae6bdbea199a49dfb8a4c1",
                inside="dtd",
            ),
        ),
    ),
    Benchmark(
        name="eurosat",
        title="EuroSAT",
        folder="eurosat",
        layout=SplitFile("2750", "split_zhou_EuroSAT.json"),
        template="a centered satellite photo of {}.",
        classes=10,
        sizes=Sizes(13_500, 5_400, 8_100),
        split_sha256="541503a77d0b26b735d85ec7a3e672804fe0aa466c2e5f07da772cc6c0af8ad2",
        archives=(
            Archive(
                "http://madm.dfki.de/files/sentinel/EuroSAT.zip", "2750", "c8fa014336c82ac7804f0398fcb19387"
            ),
        ),
    ),
    Benchmark(
        name="ucf101",
        title="UCF101",
        folder="ucf101",
        layout=SplitFile("UCF-101-midframes", "split_zhou_UCF101.json"),
        template="a photo of a person doing {}.",
        classes=101,
        sizes=Sizes(7_639, 1_898, 3_783),
        split_sha256="d78cb834f7c5792ceaff2c5ee2d7c76a9e4086e48a3a6b01232989d29cbefdd8",
        by_hand="get UCF-101-midframes.zip, the middle frame of each video, from a mirror of the benchmarks",
    ),
    Benchmark(
        name="imagenetv2",
        title="ImageNetV2",
        folder="imagenetv2",
        layout=NumberedFolders("imagenetv2-matched-frequency-format-val"),
        classes=1000,
        sizes=Sizes(0, 0, 10_000),
        by_hand="get the matched-frequency set of github.com/modestyachts/ImageNetV2",
        variant_of="imagenet",
    ),
    Benchmark(
        name="imagenet_sketch",
        title="ImageNet-Sketch",
        folder="imagenet-sketch",
        layout=WnidFolders("images"),
        classes=1000,
        sizes=Sizes(0, 0, 50_889),
        by_hand="get it from github.com/HaohanWang/ImageNet-Sketch and call its folder of wnids images/",
        variant_of="imagenet",
    ),
    Benchmark(
        name="imagenet_a",
        title="ImageNet-A",
        folder="imagenet-adversarial",
        layout=WnidFolders("imagenet-a"),
        classes=200,
        sizes=Sizes(0, 0, 7_500),
        by_hand="get it from github.com/hendrycks/natural-adv-examples",
        variant_of="imagenet",
    ),
    Benchmark(
        name="imagenet_r",
        title="ImageNet-R",
        folder="imagenet-rendition",
        layout=WnidFolders("imagenet-r"),
        classes=200,
        sizes=Sizes(0, 0, 30_000),
        by_hand="get it from github.com/hendrycks/imagenet-r",
        variant_of="imagenet",
    ),
)

BENCHMARKS: dict[str, Benchmark] = {row.name: row for row in _ROWS}

OFFICIAL_SPLIT = "split_official.json"
"""Written beside the images when the user asks for the official lists instead of CoOp's split."""


def layout_in(row: Benchmark, folder: Path) -> Layout:
    """The layout of a folder: the row's, or that of the official split, which the user has had written there.

    Raises:
        UserError: both splits are there.
    """
    if row.official is None or not (folder / OFFICIAL_SPLIT).exists():
        return row.layout
    others = [part for part in row.layout.parts if part.endswith(".json") and (folder / part).exists()]
    if others:
        raise UserError(f"{folder} holds two splits, {others[0]} and {OFFICIAL_SPLIT}: remove one of them")
    return SplitFile(row.official.images, OFFICIAL_SPLIT, OFFICIAL_NOTE)


OFFICIAL_NOTE = "the official split, not CoOp's: figures on it do not compare with published ones"
_COOP = "the release of CoOp (github.com/KaiyangZhou/CoOp, DATASETS.md)"


def how_to_get(row: Benchmark, part: str = "") -> str:
    """Return instructions for obtaining a part of a dataset's layout, by default its images."""
    if part.endswith(".json"):
        never = "a split is never made up, since results would not be comparable"
        return f"`prometar data download {row.name} --to DIR` gets it, or get it from {_COOP}; {never}"
    if part == "classnames.txt":
        return f"get it from {_COOP}" if not row.variant_of else "copy it from imagenet/classnames.txt"
    if row.archives:
        return f"`prometar data download {row.name} --to DIR` gets it"
    return row.by_hand
