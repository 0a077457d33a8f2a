"""Download a benchmark's images and its split file.

Images come from the official archives. If they cannot be downloaded, the copy of the whole benchmark at
`COPIES_URL` is used. The split file comes from `SPLIT_FILES_URL`, or else from the copy.
"""

import hashlib
import json
import os
import re
import shutil
import tarfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from email.message import Message
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError

from prometar.data.datasets.benchmarks import BENCHMARKS, CLASSNAMES_FILE, Archive, Benchmark, Copy
from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.layouts import read_split_file
from prometar.data.preparation.check import file_digest, size_differences
from prometar.errors import PrometarError, UserError, WorkError, first_line
from prometar.io.files import lock_folder, resolve_path, write_atomically

# CoOp's split files are on Google Drive, which requires a browser. A later paper's repository has copies.
SPLIT_FILES_URL = (
    "https://raw.githubusercontent.com/linzhiqiu/cross_modal_adaptation/"
    "ac9077ee4e422f768c9b9109551468605e33ec9a/splits"
)
# A commit of the repository that PromptKD, ATPrompt and later papers recommend: images and lists as in CoOp.
COPIES_URL = (
    "https://huggingface.co/zhengli97/prompt_learning_dataset/resolve/"
    "ceb3112337fb6e1bf71534e355ca5569b63f19a6"
)
TIMEOUT_SECONDS = 60
CHUNK_BYTES = 2**20
MAX_TRANSFERS = 50  # per file, if the server closes the connection again and again

# HTTP status codes.
_PARTIAL_CONTENT = 206
_NO_SUCH_RANGE = 416

# Header "bytes FIRST-LAST/SIZE". The server may send * instead of FIRST-LAST or of SIZE.
_CONTENT_RANGE = re.compile(r"bytes (?:(?P<first>\d+)-\d+|\*)/(?:(?P<size>\d+)|\*)")

# Subfolders of a download folder.
_TRANSFERS = "transfers"
_TEMPORARY = "temporary"

ProgressCallback = Callable[[int, int], None]
"""Callback that receives the finished and total numbers of bytes or shards. An unknown total is 0."""
NoticeCallback = Callable[[str], None]
"""Callback that receives a message for the user, such as why another source is used."""


class SourceError(WorkError):
    """Failure of one source, such as a dead link or a corrupt archive. Another source may have the file."""


def download(
    name: str,
    to: Path | str,
    *,
    progress: ProgressCallback = lambda done, total: None,
    notify: NoticeCallback = lambda notice: None,
) -> tuple[list[Path], str]:
    """Download a benchmark's images and lists to its folder below `to`, and verify known digests.

    Existing files are not changed. New files and folders appear only when they are complete. If the transfer
    of an archive is interrupted, its first part stays in the folder `.download-NAME` below `to`. A later call
    continues the transfer.

    Args:
        name: Benchmark with public images.
        to: Data root.
        progress: Receives (finished bytes, total bytes) of the current file.
        notify: Receives the error of a failed source before another source is tried.

    Returns:
        The added folders and files, and the reason why the dataset cannot be opened yet ("" if it can).

    Raises:
        UserError: `name` is not a benchmark or has no public images, or `to` is not a local folder.
        WorkError: all sources failed (the message lists them), the disk is full, `to` is not writable, or
            another process downloads the same benchmark to `to`.
    """
    if name not in BENCHMARKS:
        raise UserError(f"'{name}' is not a benchmark. Use one of {', '.join(BENCHMARKS)}.")
    benchmark = BENCHMARKS[name]
    root = resolve_path(to)
    folder = root / benchmark.folder
    if benchmark.copy_file is None:
        paths = ", ".join(benchmark.required_paths)
        fix = f"{benchmark.instructions} {folder} must then contain {paths}."
        raise UserError(f"{benchmark.title} has no public archive. {fix}")
    with _download_folder(root, name) as download_folder:
        task = _Download(benchmark, benchmark.copy_file, folder, download_folder, progress, notify)
        added = task.run()
    try:
        open_dataset(name, root)
    except PrometarError as error:
        return added, str(error)
    return added, ""


class _Download:
    """Download of one benchmark to its folder.

    Files are received and unpacked in a `_download_folder` on the same disk, so that complete files and
    folders can be moved to the benchmark's folder without being copied.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        copy: Copy,
        folder: Path,
        download_folder: Path,
        progress: ProgressCallback,
        notify: NoticeCallback,
    ) -> None:
        self._benchmark = benchmark
        self._copy = copy
        self._folder = folder
        self._temp = download_folder / _TEMPORARY
        self._transfers = download_folder / _TRANSFERS
        self._progress = progress
        self._notify = notify
        self._num_unpacked = 0

    def run(self) -> list[Path]:
        """Add what is missing. Return the added folders and files.

        Raises:
            SourceError: all sources of the images or of the split file failed.
        """
        added: list[Path] = []
        split_file = self._benchmark.split_file
        has_images = all((self._folder / name).exists() for name in self._copy.folders)
        try:
            if not has_images:
                added += self._try_in_turn(self._image_sources())
            if split_file and not (self._folder / split_file).exists():
                added += self._try_in_turn([self._install_split_file, self._install_copy])
        except SourceError as error:
            fix = f"Rerun this command later, or put the files into {self._folder} yourself (docs/data.md)."
            raise SourceError(f"{error} {fix}") from None
        added += self._install_class_list()
        return added

    def _image_sources(self) -> list[Callable[[], list[Path]]]:
        """Return functions that install the images from one source each, the preferred source first."""
        if not self._benchmark.archives:
            return [self._install_copy]
        if self._benchmark.imagenet_variant:  # only the copy contains classnames.txt
            return [self._install_copy, self._install_archives]
        return [self._install_archives, self._install_copy]

    def _try_in_turn(self, sources: Sequence[Callable[[], list[Path]]]) -> list[Path]:
        """Call the sources in turn until one succeeds. Return its result.

        Raises:
            SourceError: all sources failed.
        """
        failures: list[str] = []
        for number, source in enumerate(sources, 1):
            try:
                return source()
            except SourceError as error:
                failures.append(str(error))
                if number < len(sources):
                    self._notify(f"{error} Trying another source.")
        raise SourceError(" ".join(failures))

    def _install_archives(self) -> list[Path]:
        """Install the official archives whose main folders are missing. Return the added main folders."""
        added: list[Path] = []
        for archive in self._benchmark.archives:
            if not (self._folder / archive.target).exists():
                sources = [partial(self._install_archive, archive, url) for url in archive.urls]
                added += self._try_in_turn(sources)
        return added

    def _install_archive(self, archive: Archive, url: str) -> list[Path]:
        """Install an official archive from `url`. Return its main folder."""
        unpacked = self._fetch_and_unpack(url, archive.digest, archive.inner)
        parent = unpacked / archive.parent
        packed_main_folder = parent / archive.main_folder
        if not packed_main_folder.is_dir():
            missing = Path(archive.parent, archive.main_folder)
            raise SourceError(f"{url} no longer contains the folder {missing}.")
        main_folder = parent / archive.target
        packed_main_folder.rename(main_folder)
        other_entries = [entry for entry in parent.iterdir() if entry != main_folder]
        self._move_new([*other_entries, main_folder])
        return [self._folder / archive.target]

    def _install_copy(self) -> list[Path]:
        """Install the folders and lists of the copy of the whole benchmark, without its other files."""
        url = f"{COPIES_URL}/{self._copy.file}"
        unpacked = self._fetch_and_unpack(url, self._copy.digest)
        parent = self._find_parent(unpacked, self._copy.folders[0], url)
        lists = [path for path in self._benchmark.required_paths if (parent / path).is_file()]
        if self._benchmark.split_file in lists:
            self._verify_split_file(parent / self._benchmark.split_file, url)
        entries = [parent / name for name in (*lists, *self._copy.folders)]
        return self._move_new([entry for entry in entries if entry.exists()])

    def _find_parent(self, unpacked: Path, name: str, url: str) -> Path:
        """Return the uppermost folder in `unpacked` that contains the folder `name`.

        Raises:
            SourceError: no such folder exists in the archive, which came from `url`.
        """
        found: list[Path] = []
        for path in [unpacked, *sorted(unpacked.rglob("*"))]:
            if "__MACOSX" not in path.parts and (path / name).is_dir():  # macOS adds __MACOSX to archives
                found.append(path)
        if not found:
            raise SourceError(f"{url} does not contain the folder {name}.")
        return min(found, key=lambda path: len(path.parts))

    def _install_split_file(self) -> list[Path]:
        """Install the split file from `SPLIT_FILES_URL`."""
        file = self._temp / self._benchmark.split_file
        url = f"{SPLIT_FILES_URL}/{file.name}"
        download_file(url, file, digest=self._benchmark.split_digest, progress=self._progress)
        self._verify_split_file(file, url)
        return self._move_new([file])

    def _verify_split_file(self, file: Path, url: str) -> None:
        """Require the digest of CoOp's split file, if it is known, and the published sizes."""
        _verify_digest(file, self._benchmark.split_digest, f"{file.name} at {url}")
        try:
            splits = read_split_file(file)
        except UserError as error:
            raise SourceError(f"{url}: {error}") from None
        labels: set[int] = set()
        for items in splits.values():
            labels.update(item.label for item in items)
        counts = {split: len(items) for split, items in splits.items()}
        differences = size_differences(self._benchmark.name, len(labels), counts)
        if differences:
            raise SourceError(f"{url} differs from the published split: {', '.join(differences)}.")

    def _install_class_list(self) -> list[Path]:
        """Copy classnames.txt, if it is missing, from another benchmark's folder. Return the added file.

        The file is the same in the folders of ImageNet and of all its variants.
        """
        target = self._folder / CLASSNAMES_FILE
        if CLASSNAMES_FILE not in self._benchmark.required_paths or target.exists():
            return []
        for other in BENCHMARKS.values():
            source = self._folder.parent / other.folder / CLASSNAMES_FILE
            if CLASSNAMES_FILE in other.required_paths and source.is_file():
                write_atomically(target, source.read_bytes())
                return [target]
        return []

    def _fetch_and_unpack(self, url: str, digest: str, inner: str = "") -> Path:
        """Download and unpack an archive, or the archive `inner` in it. Return the folder of its content."""
        file = self._fetch(url, digest)
        self._num_unpacked += 1
        folder = self._temp / str(self._num_unpacked)
        folder.mkdir()
        unpacked = folder / "unpacked"
        try:
            unpack(file, unpacked)
        except SourceError:
            # The archive is corrupt. After other errors, such as a full disk, it is kept for a later call.
            shutil.rmtree(file.parent)
            raise
        shutil.rmtree(file.parent)
        if not inner:
            return unpacked

        inner_file = unpacked / inner
        if not inner_file.is_file():
            raise SourceError(f"{url} no longer contains the file {inner}.")
        inner_unpacked = folder / "inner"
        unpack(inner_file, inner_unpacked)
        return inner_unpacked

    def _fetch(self, url: str, digest: str) -> Path:
        """Download an archive to a folder of its own. Return the path of the archive.

        The folder is named by the address, so that a later call finds an interrupted transfer.
        """
        url_digest = hashlib.sha256(url.encode()).hexdigest()
        folder = self._transfers / url_digest[:16]
        folder.mkdir(exist_ok=True)
        _, _, file_name = url.rpartition("/")
        file = folder / file_name
        try:
            download_file(url, file, digest=digest, progress=self._progress)
        finally:
            if not file.exists():
                shutil.rmtree(folder)
        return file

    def _move_new(self, entries: Sequence[Path]) -> list[Path]:
        """Move entries to the benchmark's folder, unless they exist there. Return the new paths.

        The last entry marks a complete download, because a later call downloads nothing if it exists.
        """
        self._folder.mkdir(exist_ok=True)
        moved: list[Path] = []
        for entry in entries:
            target = self._folder / entry.name
            if not target.exists():
                os.replace(entry, target)
                moved.append(target)
        return moved


@contextmanager
def _download_folder(root: Path, name: str) -> Iterator[Path]:
    """Create and yield the download folder of a benchmark.

    The download folder lies in the data root, so that files can be moved from it without being copied. It
    contains a folder of transfers, which later commands continue, and a folder of temporary files. The
    temporary files are deleted at the end. The download folder is also deleted, unless a transfer was
    interrupted.

    Raises:
        WorkError: a file cannot be written in the `with` block, or another process uses the download folder.
    """
    folder = root / f".download-{name}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with lock_folder(folder, f"The folder {folder}"):
            shutil.rmtree(folder / _TEMPORARY, ignore_errors=True)  # left by a command that was killed
            (folder / _TEMPORARY).mkdir()
            (folder / _TRANSFERS).mkdir(exist_ok=True)
            succeeded = False
            try:
                yield folder
                succeeded = True
            finally:
                has_transfers = any((folder / _TRANSFERS).iterdir())
                if succeeded or not has_transfers:
                    shutil.rmtree(folder, ignore_errors=True)
                else:
                    shutil.rmtree(folder / _TEMPORARY, ignore_errors=True)
    except OSError as error:
        raise WorkError(
            f"Cannot write to {root}: {error.strerror or error}. Free disk space, or use another --to."
        ) from None


def download_file(
    url: str, file: Path, *, digest: str = "", progress: ProgressCallback = lambda done, total: None
) -> None:
    """Download `url` to `file`. If this or an earlier call was interrupted, continue its transfer.

    FILE.transfer.json records the size and the version of the served file. If the served file has changed, or
    the server cannot continue a transfer, the transfer starts again.

    Args:
        digest: Expected digest, such as "md5:<hex>", or "" if it is unknown. A file with another digest is
            deleted.

    Raises:
        SourceError: the transfer failed, or the digest differs.
        WorkError: the disk has no space for the file and its unpacked content.
        OSError: the file cannot be written.
    """
    interruption = ""
    for _ in range(MAX_TRANSFERS):
        size_before = _size(file)
        interruption = _transfer(url, file, progress)
        has_grown = _size(file) > size_before
        if not interruption or not has_grown:
            break
    if interruption:
        raise SourceError(f"Cannot download {url}: {interruption}.")
    try:
        _verify_digest(file, digest, url)
    except SourceError:
        _discard(file)
        raise


@dataclass(frozen=True)
class _ServedFile:
    """What a server said about a file when its transfer began.

    Attributes:
        url: Address of the file.
        validator: Version of the file for the header If-Range. It is a strong ETag, or else the date of the
            last modification, or "" if the server sent neither.
        size: Size in bytes, or None if it is unknown.
    """

    url: str
    validator: str
    size: int | None

    @classmethod
    def of_response(cls, url: str, headers: Message, size: int | None) -> "_ServedFile":
        """Return the record of a response that starts a transfer."""
        validator = headers.get("ETag", "")
        if not validator.startswith('"'):  # a weak ETag (W/"...") does not promise equal bytes
            validator = headers.get("Last-Modified", "")
        return cls(url, validator, size)


def _record_path(file: Path) -> Path:
    """Return the path of the record of a file's transfer."""
    return file.with_name(f"{file.name}.transfer.json")


def _interrupted_transfer(url: str, file: Path) -> _ServedFile | None:
    """Return the record of an interrupted transfer from `url`, or None if there is nothing to continue."""
    if not _size(file):
        return None
    try:
        content = _record_path(file).read_bytes()
        record = _ServedFile(**json.loads(content))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return record if record.url == url else None


def _size(file: Path) -> int:
    """Return the size of a file in bytes, or 0 if it does not exist."""
    return file.stat().st_size if file.exists() else 0


def _discard(file: Path) -> None:
    """Delete a file and the record of its transfer."""
    file.unlink(missing_ok=True)
    _record_path(file).unlink(missing_ok=True)


def _verify_digest(file: Path, expected: str, source: str) -> None:
    """Raise a SourceError if a file does not have the expected digest, which is "" if it is unknown.

    Args:
        source: Where the file came from, for the message.
    """
    if not expected:
        return
    algorithm, _, _ = expected.partition(":")
    found = file_digest(file, algorithm)
    if found != expected:
        raise SourceError(f"{source} has the digest {found}, expected {expected}.")


def _transfer(url: str, file: Path, progress: ProgressCallback) -> str:
    """Download the bytes that `file` lacks. Return why the transfer was interrupted, or "" if it was not."""
    interrupted = _interrupted_transfer(url, file)
    start = 0 if interrupted is None else _size(file)
    request = _request(url, interrupted, start)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        with error:
            if interrupted is None or error.code != _NO_SUCH_RANGE:
                return first_line(error)
            _, served_size = _content_range(error.headers)
        complete_size = served_size or interrupted.size
        if start == complete_size:  # an earlier call has received the whole file
            return ""
        return _restart(url, file, progress)
    except (OSError, HTTPException) as error:
        return first_line(error)

    with response:
        if interrupted is None or response.status != _PARTIAL_CONTENT:  # the server sends the whole file
            _discard(file)
            record = _ServedFile.of_response(url, response.headers, response.length)
            _record_path(file).write_text(json.dumps(asdict(record)), "utf-8")
            return _receive(response, file, 0, progress)
        if _continues(response.headers, interrupted, start):
            return _receive(response, file, start, progress)
    return _restart(url, file, progress)


def _request(url: str, interrupted: _ServedFile | None, start: int) -> urllib.request.Request:
    """Return the request for a file, from byte `start` on if its transfer was interrupted."""
    headers = {"User-Agent": "prometar"}
    if interrupted is not None:
        headers["Range"] = f"bytes={start}-"
        if interrupted.validator:  # if the file has changed, the server then sends the whole file
            headers["If-Range"] = interrupted.validator
    return urllib.request.Request(url, headers=headers)


def _continues(headers: Message, interrupted: _ServedFile, start: int) -> bool:
    """Return True if a partial response starts at byte `start` of the file as it was at the interruption.

    If a size is unknown, the file counts as unchanged.
    """
    first_byte, served_size = _content_range(headers)
    if first_byte != start:
        return False
    if served_size is None or interrupted.size is None:
        return True
    return served_size == interrupted.size


def _restart(url: str, file: Path, progress: ProgressCallback) -> str:
    """Transfer the whole file again. Return why the transfer was interrupted, or "" if it was not."""
    _discard(file)
    return _transfer(url, file, progress)


def _receive(response: HTTPResponse, file: Path, start: int, progress: ProgressCallback) -> str:
    """Append a response to the `start` bytes of `file`. Return why it ended early, or "" if it did not."""
    num_missing = response.length or 0  # 0 if the server does not send the length
    total = start + num_missing
    unpacked_bytes = total  # the unpacked content has about the size of the archive
    _require_disk_space(file.parent, num_missing + unpacked_bytes)
    with file.open("ab") as stream:
        while True:
            try:
                chunk = response.read(CHUNK_BYTES)
            except (OSError, HTTPException) as error:
                return first_line(error)
            if not chunk:
                break
            stream.write(chunk)
            progress(stream.tell(), total)
        if stream.tell() < total:
            return f"the connection was closed after {stream.tell()} of {total} bytes"
    return ""


def _content_range(headers: Message) -> tuple[int | None, int | None]:
    """Return the position of the first byte and the size of the file, as the header Content-Range says.

    A number that the header does not contain is None.

    Example:
        >>> headers = Message()
        >>> headers["Content-Range"] = "bytes 5-8/9"
        >>> _content_range(headers)
        (5, 9)
    """
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    if match is None:
        return None, None
    first = None if match["first"] is None else int(match["first"])
    size = None if match["size"] is None else int(match["size"])
    return first, size


def _require_disk_space(folder: Path, num_bytes: int) -> None:
    """Raise a WorkError if the disk of `folder` has less free space than `num_bytes`."""
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise WorkError(
            f"The download and its content need {num_bytes / 1e9:.1f} GB, but only {free / 1e9:.1f} GB "
            "are free. Free disk space, or use another --to."
        )


def unpack(archive: Path, target: Path) -> None:
    """Unpack a .zip, .tar, .tar.gz or .tgz file into the folder `target`. Nothing is written outside it.

    Raises:
        SourceError: the archive is corrupt, or a tar file contains a link or a path outside `target`.
        OSError: a file cannot be written.
    """
    try:
        if zipfile.is_zipfile(archive):
            shutil.unpack_archive(archive, target, "zip")  # skips members outside `target`
        else:
            _unpack_tar(archive, target)
    except Exception as error:  # corrupt and hostile archives raise many kinds of errors
        if isinstance(error, OSError) and error.errno is not None:  # a fault of the disk, not of the archive
            raise
        raise SourceError(f"Cannot unpack {archive.name}: {first_line(error)}.") from None


def _unpack_tar(archive: Path, target: Path) -> None:
    """Unpack a tar file, which may be compressed, into the folder `target`.

    Raises:
        ValueError: the file contains a link, a device or a path outside `target`.
    """
    with tarfile.open(archive) as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # missing before Python 3.11.4
        for member in tar:
            path = PurePosixPath(member.name)
            is_inside = not path.is_absolute() and ".." not in path.parts
            is_file_or_folder = member.isfile() or member.isdir()
            if not is_inside or not is_file_or_folder:
                raise ValueError(f"'{member.name[:80]}' is not a file or folder inside the target")
            tar.extract(member, target, set_attrs=False)
