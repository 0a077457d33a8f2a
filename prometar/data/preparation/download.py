"""Get a benchmark's public archives and put their folders where the catalog looks for them."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from prometar.data.datasets.benchmarks import BENCHMARKS, Archive, how_to_get
from prometar.data.preparation.archives import unpack
from prometar.data.preparation.http import Progress, fetch
from prometar.errors import UserError, WorkError
from prometar.io.files import require_utf8

WORK = ".download"  # below the data root, so that moving into place is renaming


@dataclass(frozen=True)
class DownloadResult:
    """What `download` left behind.

    Attributes:
        name: The data set.
        folder: Its folder.
        placed: Folders that were downloaded and put there.
        kept: Folders that were there already; nothing was downloaded for them.
        missing: Lines: each part that must still be got by hand, and how.
    """

    name: str
    folder: Path
    placed: tuple[str, ...]
    kept: tuple[str, ...]
    missing: tuple[str, ...]


def download(name: str, to: Path | str, *, progress: Progress = lambda done, total: None) -> DownloadResult:
    """Download, check, unpack and place a benchmark's images: `<to>/<folder>/...`.

    Archives and half-done work lie in `<to>/.download` and are removed when their folder is in place; folders
    appear whole or not at all. A folder that is there is never touched. The same command goes on.

    Args:
        name: A benchmark with public archives.
        to: The data root.
        progress: See `fetch`.

    Raises:
        UserError: unknown, nothing public to download, or `to` is no local folder.
        WorkError: see `fetch` and `unpack`.
    """
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
    if not row.archives:
        parts = ", ".join(row.layout.parts)
        raise UserError(f"{row.title} has no public archive: {row.by_hand}; {folder} must then hold {parts}")
    placed, kept = [], []
    for archive in row.archives:
        if (folder / archive.key).exists():
            kept.append(archive.key)
            continue
        work = root / WORK
        try:
            work.mkdir(parents=True, exist_ok=True)
            _place(archive, folder, work, progress)
        except OSError as error:
            raise WorkError(
                f"cannot write below {root}: {error.strerror or error}; the same command goes on"
            ) from None
        finally:
            with suppress(OSError):  # unless it holds what the same command goes on from
                work.rmdir()
        placed.append(archive.key)
    missing = (part for part in row.layout.parts if not (folder / part).exists())
    lines = tuple(f"{folder / part}: {how_to_get(row, part)}" for part in missing)
    return DownloadResult(name, folder, tuple(placed), tuple(kept), lines)


def _place(archive: Archive, folder: Path, work: Path, progress: Progress) -> None:
    file = work / f"{folder.name}-{archive.url.rsplit('/', 1)[-1]}"
    unpacked = work / f"{folder.name}-{archive.key}"
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
