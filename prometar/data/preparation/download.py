"""Download of a benchmark's public archives and its split file."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

from prometar.bundled.suite import SUITE
from prometar.data.datasets.benchmarks import (
    BENCHMARKS,
    OFFICIAL_NOTE,
    OFFICIAL_SPLIT,
    Archive,
    Benchmark,
    how_to_get,
    layout_in,
)
from prometar.data.datasets.catalog import missing_below
from prometar.data.datasets.layouts import SplitFile
from prometar.data.datasets.listing import SPLITS
from prometar.data.preparation.archives import unpack
from prometar.data.preparation.check import differences
from prometar.data.preparation.http import Progress, fetch, unwatched
from prometar.errors import UserError, WorkError
from prometar.io.files import resolved, write_atomically

# CoOp's own files lie on Google Drive, which asks a browser to confirm. A paper's repository has copies.
PUBLIC_SPLITS = (
    "https://raw.githubusercontent.com/linzhiqiu/cross_modal_adaptation/"
    "ac9077ee4e422f768c9b9109551468605e33ec9a/splits"
)
COOP, OFFICIAL = "coop", "official"


@dataclass(frozen=True)
class DownloadResult:
    """Outcome of `download`.

    Attributes:
        folder: The dataset's folder.
        placed: Folders and files that were added.
        kept: Those that existed. Nothing was downloaded for them.
        note: A remark on the added split.
        missing: One line per part that must be added by hand.
    """

    folder: Path
    placed: tuple[str, ...]
    kept: tuple[str, ...]
    note: str
    missing: tuple[str, ...]


def download(
    name: str,
    to: Path | str,
    *,
    split: str = COOP,
    mirror: str | None = None,
    progress: Progress = unwatched,
) -> DownloadResult:
    """Download, verify and unpack a benchmark's images and its split to `<to>/<folder>`.

    A folder or file that exists is never touched. New ones appear whole or not at all.

    Args:
        name: A benchmark with public archives or a split file.
        to: The data root.
        split: `coop`, the field's split file, or `official`, made from the dataset's own lists.
        mirror: URL of a folder with split files that replaces `PUBLIC_SPLITS`.
        progress: See `fetch`.

    Raises:
        UserError: Unknown dataset, nothing to download, or `to` is not a local folder.
        WorkError: See `fetch` and `unpack`.
    """
    row, root = _benchmark(name, to), resolved(to)
    folder = root / row.folder
    _require_split(row, folder, split, mirror)
    placed, kept = [], []
    for archive in row.archives:
        if (folder / archive.key).exists():
            kept.append(archive.key)
            continue
        with _work(root) as work:
            _place(archive, folder, work, progress)
        placed.append(archive.key)
    if (
        file := OFFICIAL_SPLIT
        if split == OFFICIAL
        else row.layout.file
        if isinstance(row.layout, SplitFile)
        else ""
    ):
        if (folder / file).exists():
            kept.append(file)
        else:
            if split == OFFICIAL:
                _make_official(row, folder)
            else:
                with _work(root) as work:
                    _get_split(row, folder / file, mirror, work, progress)
            placed.append(file)
    layout = layout_in(row, folder)
    missing = [part for part in layout.parts if not (folder / part).exists()]
    lines = [f"{folder / part}: {how_to_get(row, part)}" for part in missing]
    if not missing and not row.archives:  # images may lie right in the folder, which is not a part
        listing = layout.read(folder)
        if missing_below(listing.images, listing.splits["train"][:1]):
            lines = [f"{listing.images}: {row.by_hand}"]
    note = OFFICIAL_NOTE if OFFICIAL_SPLIT in placed else ""
    return DownloadResult(folder, tuple(placed), tuple(kept), note, tuple(lines))


def _benchmark(name: str, to: Path | str) -> Benchmark:
    if name in SUITE:
        raise UserError(f"'{name}' comes with prometar: there is nothing to download")
    if name not in BENCHMARKS:
        raise UserError(f"'{name}' is not a benchmark: known are {', '.join(BENCHMARKS)}")
    row = BENCHMARKS[name]
    if "://" in str(to):
        raise UserError(
            f"--to {to} is not a folder: download to one, then `prometar data prepare {name} --to {to}`"
        )
    if resolved(to).exists() and not resolved(to).is_dir():
        raise UserError(f"--to {to} is a file: choose a folder")
    if not row.archives and not isinstance(row.layout, SplitFile):
        parts = ", ".join(row.layout.parts)
        raise UserError(
            f"{row.title} has no public archive: {row.by_hand}; {Path(to, row.folder)} must then hold {parts}"
        )
    return row


def _require_split(row: Benchmark, folder: Path, split: str, mirror: str | None) -> None:
    if split not in (COOP, OFFICIAL):
        raise UserError(f"--split '{split}': choose {COOP} or {OFFICIAL}")
    if split == OFFICIAL and row.official is None:
        raise UserError(f"{row.title} comes without lists that make a split: omit --split")
    if mirror is not None and (split == OFFICIAL or not isinstance(row.layout, SplitFile)):
        raise UserError(f"--mirror is a source of CoOp's split files, and {row.title} has none")
    if isinstance(row.layout, SplitFile):
        other = folder / (row.layout.file if split == OFFICIAL else OFFICIAL_SPLIT)
        if other.exists():
            raise UserError(
                f"{other} exists, and a folder holds one split: remove it, or choose another --to"
            )


@contextmanager
def _work(root: Path) -> Iterator[Path]:
    """Temporary folder below the data root, so that files are moved into place by renaming."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".download-", dir=root) as folder:
            yield Path(folder)
    except OSError as error:
        raise WorkError(f"cannot write below {root}: {error.strerror or error}") from None


def _place(archive: Archive, folder: Path, work: Path, progress: Progress) -> None:
    file = work / archive.url.rsplit("/", 1)[-1]
    fetch(archive.url, file, md5=archive.md5, progress=progress)
    unpack(file, work / "unpacked")
    inside = work / "unpacked" / archive.inside
    if not (inside / archive.key).is_dir():
        raise WorkError(f"{archive.url} has no folder {archive.inside}/{archive.key}: it has changed")
    folder.mkdir(exist_ok=True)
    # The key is moved last: if it exists, everything does.
    for entry in sorted(inside.iterdir(), key=lambda entry: entry.name == archive.key):
        if not (folder / entry.name).exists():
            entry.rename(folder / entry.name)


def _get_split(row: Benchmark, file: Path, mirror: str | None, work: Path, progress: Progress) -> None:
    """Download CoOp's split file. It must have the published digest and sizes."""
    try:
        fetch(
            f"{(mirror or PUBLIC_SPLITS).rstrip('/')}/{file.name}",
            work / file.name,
            sha256=row.split_sha256,
            progress=progress,
        )
        listing = SplitFile(".", file.name).read(work)
        labels = {item.label for item in chain(*listing.splits.values())}
        counts = {split: len(listing.splits.get(split, ())) for split in SPLITS}
        if found := differences(row.name, len(labels), counts):
            raise WorkError(f"{file.name} is not the published split: it has {', '.join(found)}")
    except UserError as error:
        raise WorkError(f"{error}; --mirror names another source of the split file") from None
    file.parent.mkdir(parents=True, exist_ok=True)
    os.replace(work / file.name, file)


def _make_official(row: Benchmark, folder: Path) -> None:
    """Write the official lists of a dataset as a split file."""
    assert row.official is not None
    listing = row.official.read(folder)
    rows = {
        split: [[item.path, item.label, item.classname] for item in listing.splits.get(split, ())]
        for split in SPLITS
    }
    write_atomically(folder / OFFICIAL_SPLIT, json.dumps(rows).encode())
