"""Download of a benchmark's public archives and its split file."""

import os
import shutil
import tarfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from urllib.error import HTTPError

from prometar.data.datasets.benchmarks import BENCHMARKS, Archive, Benchmark
from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.layouts import read_split_file
from prometar.data.preparation.check import digest_of, other_sizes
from prometar.errors import PrometarError, UserError, WorkError, first_line
from prometar.io.files import resolved

# CoOp's own files lie on Google Drive, which asks a browser to confirm. A paper's repository has copies.
PUBLIC_SPLITS = (
    "https://raw.githubusercontent.com/linzhiqiu/cross_modal_adaptation/"
    "ac9077ee4e422f768c9b9109551468605e33ec9a/splits"
)
TIMEOUT_SECONDS = 60
CHUNK = 2**20  # bytes

Progress = Callable[[int, int], None]
"""Called with the finished and the total number of bytes or shards. The total is 0 if it is unknown."""


def download(name: str, to: Path | str, *, progress: Progress) -> tuple[list[Path], str]:
    """Download, verify and unpack a benchmark's images and its split file to `<to>/<folder>`.

    A folder or file that exists is never touched. New ones appear whole or not at all.

    Args:
        name: A benchmark with public archives or a split file.
        to: The data root.
        progress: Called with (bytes so far, all bytes) of a file.

    Returns:
        The folders and files that were added, and why the dataset cannot be opened yet ("" if it can).

    Raises:
        UserError: unknown dataset, nothing to download, or `to` is not a local folder.
        WorkError: a transfer failed, a digest differs, or an archive is corrupt or unsafe.
    """
    if name not in BENCHMARKS:
        raise UserError(f"'{name}' is not a benchmark: known are {', '.join(BENCHMARKS)}")
    row, root = BENCHMARKS[name], resolved(to)
    folder = root / row.folder
    if not row.archives and not row.split_file:
        parts = ", ".join(row.parts)
        fix = f"{row.instructions} {folder} must then contain {parts}."
        raise UserError(f"{row.title} has no public archive. {fix}")
    placed = []
    for archive in row.archives:
        if not (folder / archive.key).exists():
            with _work(root) as work:
                _place(archive, folder, work, progress)
            placed.append(folder / archive.key)
    if row.split_file and not (folder / row.split_file).exists():
        with _work(root) as work:
            _get_split(row, folder, work, progress)
        placed.append(folder / row.split_file)
    try:
        open_dataset(name, root)
    except PrometarError as error:
        return placed, str(error)
    return placed, ""


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
    fetch(archive.url, file, digest=archive.digest, progress=progress)
    unpack(file, work / "unpacked")
    inside = work / "unpacked" / archive.inside
    if not (inside / archive.key).is_dir():
        raise WorkError(f"{archive.url} has no folder {archive.inside}/{archive.key}: it has changed")
    folder.mkdir(exist_ok=True)
    # The key is moved last: if it exists, everything does.
    for entry in sorted(inside.iterdir(), key=lambda entry: entry.name == archive.key):
        if not (folder / entry.name).exists():
            entry.rename(folder / entry.name)


def _get_split(row: Benchmark, folder: Path, work: Path, progress: Progress) -> None:
    """Download CoOp's split file. It must have the published digest and sizes."""
    file = work / row.split_file
    fetch(f"{PUBLIC_SPLITS}/{file.name}", file, digest=row.split_digest, progress=progress)
    splits = read_split_file(file)
    labels = {item.label for items in splits.values() for item in items}
    counts = {split: len(items) for split, items in splits.items()}
    if found := other_sizes(row.name, len(labels), counts):
        raise WorkError(f"{file.name} is not the published split: it has {', '.join(found)}")
    folder.mkdir(exist_ok=True)
    os.replace(file, folder / file.name)


def fetch(url: str, file: Path, *, digest: str = "", progress: Progress = lambda done, total: None) -> None:
    """Download `url` to `file`.

    Args:
        digest: Expected digest, such as "md5:<hex>", if it is known.

    Raises:
        WorkError: the transfer failed, or the digest differs.
    """
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "prometar"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response, file.open("wb") as stream:
            total = response.length or 0
            while chunk := response.read(CHUNK):
                stream.write(chunk)
                progress(stream.tell(), total)
            if stream.tell() < total:
                raise ConnectionError(f"the connection broke off at {stream.tell()} of {total} bytes")
    except (OSError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()
        raise WorkError(
            f"cannot download {url}: {first_line(error)}. Rerun this command to try again."
        ) from None
    if digest and (found := digest_of(file, digest.partition(":")[0])) != digest:
        raise WorkError(f"{url} has the digest {found}, expected {digest}. It may have changed.")


def unpack(archive: Path, target: Path) -> None:
    """Unpack a .zip, .tar.gz or .tgz file into the folder `target`, and nothing outside of it.

    Raises:
        WorkError: the archive is corrupt, or a member of a tar file is a link or leaves `target`.
    """
    try:
        if zipfile.is_zipfile(archive):
            shutil.unpack_archive(archive, target, "zip")  # leaves out members outside of the target
            return
        with tarfile.open(archive) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 and later
            for member in tar:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                    raise ValueError(f"its member '{member.name[:80]}' is a link or leaves the folder")
                tar.extract(member, target, set_attrs=False)
    except Exception as error:  # readers of archives raise errors of many kinds on hostile bytes
        raise WorkError(f"cannot unpack {archive.name}: {first_line(error)}. Rerun this command.") from None
