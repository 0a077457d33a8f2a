"""A benchmark's split: CoOp's file from a public source, checked and remembered, or the official lists."""

import json
import os
from itertools import chain
from pathlib import Path

from prometar.data.datasets.benchmarks import OFFICIAL_SPLIT, Benchmark
from prometar.data.datasets.catalog import missing_below
from prometar.data.datasets.layouts import SplitFile
from prometar.data.datasets.listing import SPLITS, Listing
from prometar.data.preparation.check import differences
from prometar.data.preparation.digests import digest_of, keep_digest
from prometar.data.preparation.http import Progress, fetch
from prometar.errors import UserError, WorkError
from prometar.io.files import write_atomically

# CoOp's own files lie on Google Drive, which asks a browser to confirm. This is a paper's repository that has
# copies, at one commit.
PUBLIC_SPLITS = (
    "https://raw.githubusercontent.com/linzhiqiu/cross_modal_adaptation/"
    "ac9077ee4e422f768c9b9109551468605e33ec9a/splits"
)


def get_split(row: Benchmark, folder: Path, mirror: str | None, work: Path, progress: Progress) -> None:
    """Put the split file of `row` into its folder, if it proves to be the published one.

    Its digest must be that in the table, if one is there; it must list the published numbers of classes and
    images; and all of them must lie in the folder, if any image does. Its digest is kept beside it, so that
    `data check` finds a change.

    Args:
        mirror: URL of a folder that replaces `PUBLIC_SPLITS`.

    Raises:
        WorkError: it cannot be had, or is another file.
    """
    assert isinstance(row.layout, SplitFile)
    file = work / row.layout.file
    try:
        place = (mirror or PUBLIC_SPLITS).rstrip("/")
        fetch(f"{place}/{file.name}", file, sha256=row.split_sha256, progress=progress)
        _require_published(row, folder / row.layout.images, file)
    except WorkError as error:
        file.unlink(missing_ok=True)
        raise WorkError(f"{error}; --mirror names another source of the split file") from None
    folder.mkdir(parents=True, exist_ok=True)
    keep_digest(folder / file.name, digest_of(file))
    os.replace(file, folder / file.name)


def _require_published(row: Benchmark, images: Path, file: Path) -> None:
    try:
        listing = SplitFile(".", file.name).read(file.parent)
    except UserError as error:
        raise WorkError(f"what was downloaded is no split file: {error}") from None
    items = list(chain(*listing.splits.values()))
    counts = {split: len(listing.splits.get(split, ())) for split in SPLITS}
    found = differences(row.name, len({item.label for item in items}), counts)
    if found:
        raise WorkError(f"{file.name} is not the published split: it has {', '.join(found)}")
    if len(missing_below(images, items)) < len(items):  # else they are still to come
        _require_images(listing, images)


def _require_images(listing: Listing, images: Path) -> None:
    missing = missing_below(images, chain(*listing.splits.values()))
    if missing:
        raise WorkError(
            f"{len(missing)} of the images that {listing.origin} has are missing, the first is {missing[0]}: "
            "the split or the images are not the published ones"
        )


def make_official(row: Benchmark, folder: Path) -> None:
    """Write the official lists of a data set as a split file of ours.

    Raises:
        WorkError: a list is missing, or an image that it lists.
    """
    assert row.official is not None
    try:
        listing = row.official.read(folder)
    except UserError as error:
        raise WorkError(str(error)) from None
    _require_images(listing, listing.images)
    rows = {
        split: [[item.path, item.label, item.classname] for item in listing.splits.get(split, ())]
        for split in SPLITS
    }
    write_atomically(folder / OFFICIAL_SPLIT, json.dumps(rows).encode())
