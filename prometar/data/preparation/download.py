"""Download a benchmark's public archives and its split file."""

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
from prometar.data.preparation.check import file_digest, size_differences
from prometar.errors import PrometarError, UserError, WorkError, first_line
from prometar.io.files import resolve_path

# CoOp's files are on Google Drive, which requires a browser. The repository of a later paper has copies.
SPLIT_FILES_URL = (
    "https://raw.githubusercontent.com/linzhiqiu/cross_modal_adaptation/"
    "ac9077ee4e422f768c9b9109551468605e33ec9a/splits"
)
TIMEOUT_SECONDS = 60
CHUNK_BYTES = 2**20

ProgressCallback = Callable[[int, int], None]
"""Callback that receives the finished and total numbers of bytes or shards. An unknown total is 0."""


def download(name: str, to: Path | str, *, progress: ProgressCallback) -> tuple[list[Path], str]:
    """Download a benchmark's images and split file to its folder below `to`. Check known digests.

    Existing files are not changed. New files and folders appear only when they are complete.

    Args:
        name: Benchmark with public archives or a split file.
        to: Data root.
        progress: Receives (finished bytes, total bytes) of the current file.

    Returns:
        The added folders and files, and the reason why the dataset cannot be opened yet ("" if it can).

    Raises:
        UserError: unknown dataset, nothing to download, or `to` is not a local folder.
        WorkError: a transfer failed, a digest differs, or an archive is corrupt or unsafe.
    """
    if name not in BENCHMARKS:
        raise UserError(f"'{name}' is not a benchmark. Use one of {', '.join(BENCHMARKS)}.")
    benchmark, root = BENCHMARKS[name], resolve_path(to)
    folder = root / benchmark.folder
    if not benchmark.archives and not benchmark.split_file:
        paths = ", ".join(benchmark.required_paths)
        fix = f"{benchmark.instructions} {folder} must then contain {paths}."
        raise UserError(f"{benchmark.title} has no public archive. {fix}")
    added = []
    for archive in benchmark.archives:
        if not (folder / archive.main_folder).exists():
            with _temporary_folder(root) as temp:
                _install_archive(archive, folder, temp, progress)
            added.append(folder / archive.main_folder)
    if benchmark.split_file and not (folder / benchmark.split_file).exists():
        with _temporary_folder(root) as temp:
            _install_split_file(benchmark, folder, temp, progress)
        added.append(folder / benchmark.split_file)
    try:
        open_dataset(name, root)
    except PrometarError as error:
        return added, str(error)
    return added, ""


@contextmanager
def _temporary_folder(root: Path) -> Iterator[Path]:
    """Yield a temporary folder inside the data root, so that its files can be moved into place by renaming.

    An OSError in the `with` block becomes a WorkError.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".download-", dir=root) as folder:
            yield Path(folder)
    except OSError as error:
        raise WorkError(
            f"Cannot write to {root}: {error.strerror or error}. Free disk space, or use another --to."
        ) from None


def _install_archive(archive: Archive, folder: Path, temp: Path, progress: ProgressCallback) -> None:
    file = temp / archive.url.rsplit("/", 1)[-1]
    download_file(archive.url, file, digest=archive.digest, progress=progress)
    unpack(file, temp / "unpacked")
    parent, main = temp / "unpacked" / archive.parent, archive.main_folder
    if not (parent / main).is_dir():
        problem = f"{archive.url} no longer contains the folder {Path(archive.parent, main)}"
        raise WorkError(f"{problem}. Get the images elsewhere, and put them in {folder / main}.")
    folder.mkdir(exist_ok=True)
    # The main folder is moved last: if it exists, a later call to `download` skips this archive.
    for entry in sorted(parent.iterdir(), key=lambda entry: entry.name == main):
        if not (folder / entry.name).exists():
            entry.rename(folder / entry.name)


def _install_split_file(benchmark: Benchmark, folder: Path, temp: Path, progress: ProgressCallback) -> None:
    """Download CoOp's split file, and require the published digest and sizes."""
    file = temp / benchmark.split_file
    download_file(f"{SPLIT_FILES_URL}/{file.name}", file, digest=benchmark.split_digest, progress=progress)
    splits = read_split_file(file)
    labels = {item.label for items in splits.values() for item in items}
    counts = {split: len(items) for split, items in splits.items()}
    if found := size_differences(benchmark.name, len(labels), counts):
        fix = f"Download it from the CoOp repository to {folder}."
        raise WorkError(f"{file.name} differs from the published split: {', '.join(found)}. {fix}")
    folder.mkdir(exist_ok=True)
    os.replace(file, folder / file.name)


def download_file(
    url: str, file: Path, *, digest: str = "", progress: ProgressCallback = lambda done, total: None
) -> None:
    """Download `url` to `file`.

    Args:
        digest: Expected digest, such as "md5:<hex>", or "" if it is unknown.

    Raises:
        WorkError: the transfer failed, or the digest differs.
    """
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "prometar"})
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response, file.open("wb") as stream:
            total = response.length or 0
            while chunk := response.read(CHUNK_BYTES):
                stream.write(chunk)
                progress(stream.tell(), total)
            if stream.tell() < total:
                raise ConnectionError(f"the connection was closed after {stream.tell()} of {total} bytes")
    except (OSError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()
        raise WorkError(f"Cannot download {url}: {first_line(error)}. Rerun this command.") from None
    if digest and (found := file_digest(file, digest.partition(":")[0])) != digest:
        raise WorkError(
            f"{url} has the digest {found}, expected {digest}. Rerun this command, or download it manually."
        )


def unpack(archive: Path, target: Path) -> None:
    """Unpack a .zip, .tar.gz or .tgz file into the folder `target`. Nothing is written outside it.

    Raises:
        WorkError: the archive is corrupt, or a tar file contains a link or a path outside `target`.
    """
    try:
        if zipfile.is_zipfile(archive):
            shutil.unpack_archive(archive, target, "zip")  # skips members outside `target`
            return
        with tarfile.open(archive) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # missing before Python 3.11.4
            for member in tar:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                    raise ValueError(f"'{member.name[:80]}' is not a file or folder inside the target")
                tar.extract(member, target, set_attrs=False)
    except Exception as error:  # corrupt and hostile archives raise many kinds of errors
        raise WorkError(f"Cannot unpack {archive.name}: {first_line(error)}. Rerun this command.") from None
