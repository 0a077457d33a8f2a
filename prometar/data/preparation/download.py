"""Get a benchmark's public archives and its split, and put them where the catalog looks for them."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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
from prometar.data.preparation.archives import unpack
from prometar.data.preparation.digests import change_of
from prometar.data.preparation.http import Progress, fetch, unwatched
from prometar.data.preparation.splitfiles import get_split, make_official
from prometar.errors import UserError, WorkError
from prometar.io.files import require_utf8
from prometar.io.lock import leave, locked

WORK = ".download"  # below the data root, so that moving into place is renaming


@dataclass(frozen=True)
class DownloadResult:
    """What `download` left behind.

    Attributes:
        folder: The data set's.
        placed: Folders and files that were put there.
        kept: Those that were there already; nothing was downloaded for them.
        note: What is to be known about a split that was put there.
        missing: Lines: each part that must still be got by hand, and how.
    """

    folder: Path
    placed: tuple[str, ...]
    kept: tuple[str, ...]
    note: str
    missing: tuple[str, ...]


COOP, OFFICIAL = "coop", "official"


def download(
    name: str,
    to: Path | str,
    *,
    split: str = COOP,
    mirror: str | None = None,
    progress: Progress = unwatched,
) -> DownloadResult:
    """Download, check, unpack and place a benchmark's images and its split: `<to>/<folder>/...`.

    Archives and half-done work lie in `<to>/.download/<folder>` and are removed when their folder is in
    place; folders appear whole or not at all. A folder that is there is never touched. The same command goes
    on, and a second one at a time is refused.

    Args:
        name: A benchmark with public archives or a split file.
        to: The data root.
        split: `coop`, the field's split file; or `official`, made from the data set's own lists.
        mirror: Another source of split files, see `get_split`.
        progress: See `fetch`.

    Raises:
        UserError: unknown, nothing public to download, or `to` is no local folder.
        WorkError: see `fetch` and `unpack`, or another process downloads it.
    """
    if name in SUITE:
        raise UserError(f"'{name}' comes with prometar: there is nothing to download")
    if name not in BENCHMARKS:
        raise UserError(f"'{name}' is no benchmark: known are {', '.join(BENCHMARKS)}")
    row = BENCHMARKS[name]
    if "://" in str(to):
        raise UserError(
            f"--to {to} is no folder: download to one, then `prometar data prepare {name} --to {to}`"
        )
    require_utf8(to)
    root = Path(to)
    if root.exists() and not root.is_dir():
        raise UserError(f"--to {to} is a file: choose a folder")
    folder = root / row.folder
    _require_split(row, folder, split, mirror)
    if not row.archives and not isinstance(row.layout, SplitFile):
        parts = ", ".join(row.layout.parts)
        raise UserError(f"{row.title} has no public archive: {row.by_hand}; {folder} must then hold {parts}")
    steps: list[tuple[str, Callable[[Path, Progress], None]]]
    steps = [(archive.key, partial(_place, archive, folder)) for archive in row.archives]
    if split == OFFICIAL:
        steps.append((OFFICIAL_SPLIT, lambda work, progress: make_official(row, folder)))
    elif isinstance(row.layout, SplitFile):
        steps.append((row.layout.file, partial(get_split, row, folder, mirror)))
    placed, kept = [], []
    for part, step in steps:
        if (folder / part).exists():
            kept.append(part)
            continue
        with _working(root, row) as work:
            step(work, progress)
        placed.append(part)
    layout = layout_in(row, folder)
    for changed in filter(None, (change_of(folder / part) for part in layout.parts)):
        raise WorkError(f"{changed}: delete it, and the same command gets it again")
    missing = (part for part in layout.parts if not (folder / part).exists())
    lines = tuple(f"{folder / part}: {how_to_get(row, part)}" for part in missing)
    if not lines and not row.archives:  # where images lie right in the folder, no part tells of them
        listing = layout.read(folder)
        if missing_below(listing.images, listing.splits["train"][:1]):
            lines = (f"{listing.images}: {row.by_hand}",)
    note = _note_on_split(row, split) if steps[-1][0] in placed else ""
    return DownloadResult(folder, tuple(placed), tuple(kept), note, lines)


def _require_split(row: Benchmark, folder: Path, split: str, mirror: str | None) -> None:
    if split not in (COOP, OFFICIAL):
        raise UserError(f"--split '{split}': choose {COOP} or {OFFICIAL}")
    if split == OFFICIAL and row.official is None:
        raise UserError(f"{row.title} comes without lists that make a split: leave --split out")
    if mirror is not None and (split == OFFICIAL or not isinstance(row.layout, SplitFile)):
        raise UserError(f"--mirror is a source of CoOp's split files, and none is to be got for {row.title}")
    if isinstance(row.layout, SplitFile):
        other = folder / (row.layout.file if split == OFFICIAL else OFFICIAL_SPLIT)
        if other.exists():
            raise UserError(f"{other} is there: a folder holds one split; remove it, or choose another --to")


def _note_on_split(row: Benchmark, split: str) -> str:
    if split == OFFICIAL:
        return OFFICIAL_NOTE
    if not isinstance(row.layout, SplitFile) or row.split_sha256:
        return ""
    return (
        "the split file has the published sizes; its digest was not known, and is kept beside it from now on"
    )


@contextmanager
def _working(root: Path, row: Benchmark) -> Iterator[Path]:
    """The folder for half-done work, held alone, which goes when nothing is left in it."""
    work = root / WORK / row.folder
    try:
        with locked(work, f"the download of {row.name}"):
            try:
                yield work
            finally:
                with suppress(OSError):
                    (work / "lock").unlink()
    except OSError as error:
        raise WorkError(
            f"cannot write below {root}: {error.strerror or error}; the same command goes on"
        ) from None
    finally:
        leave(work)  # unless it holds what the same command goes on from


def _place(archive: Archive, folder: Path, work: Path, progress: Progress) -> None:
    file = work / archive.url.rsplit("/", 1)[-1]
    unpacked = work / archive.key
    fetch(archive.url, file, md5=archive.md5, progress=progress)
    shutil.rmtree(unpacked, ignore_errors=True)  # of an interrupted run
    unpack(file, unpacked)
    inside = unpacked / archive.inside
    if not (inside / archive.key).is_dir():
        raise WorkError(f"{archive.url} holds no folder {archive.inside}/{archive.key}: it has changed")
    folder.mkdir(exist_ok=True)
    # the key comes last: where it is, everything is
    for entry in sorted(inside.iterdir(), key=lambda entry: entry.name == archive.key):
        if not (folder / entry.name).exists():
            entry.rename(folder / entry.name)
    shutil.rmtree(unpacked)
    file.unlink()
