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

# CoOp's files are on Google Drive, which requires a browser. The repository of a later paper has copies.
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

_PARTIAL_CONTENT = 206  # statuses of HTTP
_NO_SUCH_RANGE = 416

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
    """Download a benchmark's images and lists to its folder below `to`. Check known digests.

    Existing files are not changed. New files and folders appear only when they are complete. Archives whose
    transfer was interrupted stay in the folder `.download-NAME` below `to`, and a later call continues them.

    Args:
        name: Benchmark with public images.
        to: Data root.
        progress: Receives (finished bytes, total bytes) of the current file.
        notify: Receives the reason if another source is used.

    Returns:
        The added folders and files, and the reason why the dataset cannot be opened yet ("" if it can).

    Raises:
        UserError: unknown dataset, nothing to download, or `to` is not a local folder.
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
        added = _Download(benchmark, benchmark.copy_file, folder, download_folder, progress, notify).run()
    try:
        open_dataset(name, root)
    except PrometarError as error:
        return added, str(error)
    return added, ""


class _Download:
    """Download of one benchmark to its folder, by way of a `_download_folder` on the same disk."""

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
        self._num_folders = 0

    def run(self) -> list[Path]:
        """Add what is missing. Return the added folders and files.

        Raises:
            SourceError: all sources of the images or of the split file failed.
        """
        added: list[Path] = []
        split_file = self._benchmark.split_file
        try:
            if any(not (self._folder / name).exists() for name in self._copy.folders):
                sources = [self._install_copy]
                if self._benchmark.archives and self._benchmark.imagenet_variant:
                    sources = [self._install_copy, self._install_archives]  # the copy has classnames.txt
                elif self._benchmark.archives:
                    sources = [self._install_archives, self._install_copy]
                added += self._try_in_turn(sources)
            if split_file and not (self._folder / split_file).exists():
                added += self._try_in_turn([self._install_split_file, self._install_copy])
        except SourceError as error:
            fix = f"Rerun this command later, or put the files into {self._folder} yourself (docs/data.md)."
            raise SourceError(f"{error} {fix}") from None
        return added + self._install_class_list()

    def _try_in_turn(self, sources: Sequence[Callable[[], list[Path]]]) -> list[Path]:
        """Return the result of the first source that does not fail.

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
        added: list[Path] = []
        for archive in self._benchmark.archives:
            if not (self._folder / archive.target).exists():
                added += self._try_in_turn(
                    [partial(self._install_archive, archive, url) for url in archive.urls]
                )
        return added

    def _install_archive(self, archive: Archive, url: str) -> list[Path]:
        parent = self._fetch_and_unpack(url, archive.digest, archive.inner) / archive.parent
        if not (parent / archive.main_folder).is_dir():
            missing = Path(archive.parent, archive.main_folder)
            raise SourceError(f"{url} no longer contains the folder {missing}.")
        (parent / archive.main_folder).rename(parent / archive.target)
        self._move_new(sorted(parent.iterdir(), key=lambda entry: entry.name == archive.target))
        return [self._folder / archive.target]

    def _install_copy(self) -> list[Path]:
        """Install folders and lists from the copy of the whole benchmark. Other files in it are not used."""
        url = f"{COPIES_URL}/{self._copy.file}"
        unpacked = self._fetch_and_unpack(url, self._copy.digest)
        first = self._copy.folders[0]
        found: list[Path] = []
        for path in [unpacked, *sorted(unpacked.rglob("*"))]:
            if "__MACOSX" not in path.parts and (path / first).is_dir():
                found.append(path)
        if not found:
            raise SourceError(f"{url} does not contain the folder {first}.")
        parent = min(found, key=lambda path: len(path.parts))
        lists = [path for path in self._benchmark.required_paths if (parent / path).is_file()]
        if self._benchmark.split_file in lists:
            self._verify_split_file(parent / self._benchmark.split_file, url)
        entries = [parent / name for name in (*lists, *self._copy.folders)]
        return self._move_new([entry for entry in entries if entry.exists()])

    def _install_split_file(self) -> list[Path]:
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
        labels = {item.label for items in splits.values() for item in items}
        counts = {split: len(items) for split, items in splits.items()}
        if differences := size_differences(self._benchmark.name, len(labels), counts):
            raise SourceError(f"{url} differs from the published split: {', '.join(differences)}.")

    def _install_class_list(self) -> list[Path]:
        """Copy classnames.txt, if it is missing, from another dataset's folder. All have the same list."""
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
        self._num_folders += 1
        folder = self._temp / str(self._num_folders)
        folder.mkdir()
        transfer = self._transfers / hashlib.sha256(url.encode()).hexdigest()[:16]
        transfer.mkdir(exist_ok=True)
        file = transfer / url.rsplit("/", 1)[-1]
        try:
            download_file(url, file, digest=digest, progress=self._progress)
        finally:
            if not file.exists():
                shutil.rmtree(transfer)
        try:
            unpack(file, folder / "unpacked")
        except SourceError:  # after an interruption or on a full disk, the archive is kept
            shutil.rmtree(transfer)
            raise
        shutil.rmtree(transfer)
        if not inner:
            return folder / "unpacked"
        if not (folder / "unpacked" / inner).is_file():
            raise SourceError(f"{url} no longer contains the file {inner}.")
        unpack(folder / "unpacked" / inner, folder / "inner")
        return folder / "inner"

    def _move_new(self, entries: Sequence[Path]) -> list[Path]:
        """Move entries to the benchmark's folder, unless they exist there. Return the new paths.

        The last entry marks a complete download: if it exists, a later call does not download it again.
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
    """Yield the folder of a benchmark's download. It is inside the data root, so that files can be renamed.

    It contains a folder of transfers, which later commands continue, and a folder of temporary files. It is
    removed at the end, unless a transfer was interrupted. An OSError in the `with` block becomes a WorkError.
    """
    folder = root / f".download-{name}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with lock_folder(folder, f"The folder {folder}"):
            shutil.rmtree(folder / _TEMPORARY, ignore_errors=True)  # of a command that was killed
            (folder / _TEMPORARY).mkdir()
            (folder / _TRANSFERS).mkdir(exist_ok=True)
            succeeded = False
            try:
                yield folder
                succeeded = True
            finally:
                if succeeded or not any((folder / _TRANSFERS).iterdir()):
                    shutil.rmtree(folder, ignore_errors=True)
                shutil.rmtree(folder / _TEMPORARY, ignore_errors=True)
    except OSError as error:
        raise WorkError(
            f"Cannot write to {root}: {error.strerror or error}. Free disk space, or use another --to."
        ) from None


def download_file(
    url: str, file: Path, *, digest: str = "", progress: ProgressCallback = lambda done, total: None
) -> None:
    """Download `url` to `file`. After an interruption, also of an earlier call, continue the transfer.

    What the server sent about the file is kept in FILE.transfer.json. If the file has changed since then, or
    the server cannot continue a transfer, the transfer starts again.

    Args:
        digest: Expected digest, such as "md5:<hex>", or "" if it is unknown. A file with another digest is
            deleted.

    Raises:
        SourceError: the transfer failed, or the digest differs.
        WorkError: the file and its content do not fit on the disk.
        OSError: the file cannot be written.
    """
    reason = ""
    for _ in range(MAX_TRANSFERS):
        size_before = _size(file)
        reason = _transfer(url, file, progress)
        if not reason or _size(file) <= size_before:
            break
    if reason:
        raise SourceError(f"Cannot download {url}: {reason}.")
    try:
        _verify_digest(file, digest, url)
    except SourceError:
        _discard(file)
        raise


@dataclass(frozen=True)
class _ServedFile:
    """What a server said about a file whose transfer began.

    Attributes:
        validator: Strong ETag, or else the date of the last modification, or "" if the server sent neither.
        size: Size in bytes, or None if it is unknown.
    """

    url: str
    validator: str
    size: int | None

    @classmethod
    def of_response(cls, url: str, headers: Message, size: int | None) -> "_ServedFile":
        etag = headers.get("ETag", "")
        is_strong = etag.startswith('"')  # weak ones do not promise equal bytes
        return cls(url, etag if is_strong else headers.get("Last-Modified", ""), size)


def _record_path(file: Path) -> Path:
    return file.with_name(f"{file.name}.transfer.json")


def _read_served_file(file: Path) -> _ServedFile | None:
    """Return the record of an interrupted transfer, or None if there is none that can be read."""
    try:
        return _ServedFile(**json.loads(_record_path(file).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _discard(file: Path) -> None:
    """Delete a file and the record of its transfer."""
    file.unlink(missing_ok=True)
    _record_path(file).unlink(missing_ok=True)


def _verify_digest(file: Path, expected: str, source: str) -> None:
    """Raise a SourceError if a file does not have the expected digest, which is "" if it is unknown."""
    if not expected:
        return
    found = file_digest(file, expected.partition(":")[0])
    if found != expected:
        raise SourceError(f"{source} has the digest {found}, expected {expected}.")


def _transfer(url: str, file: Path, progress: ProgressCallback) -> str:
    """Download what `file` lacks. Return the reason if the transfer was interrupted, or else ""."""
    served = _read_served_file(file)
    start = 0
    headers = {"User-Agent": "prometar"}
    if served is not None and served.url == url and _size(file):
        start = _size(file)
        headers["Range"] = f"bytes={start}-"
        if served.validator:  # the server sends the whole file if it has changed
            headers["If-Range"] = served.validator
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS
        )
    except HTTPError as error:
        with error:
            if served is None or not start or error.code != _NO_SUCH_RANGE:
                return first_line(error)
            _, size = _content_range(error.headers)
        if (size or served.size) == start:  # the earlier call was interrupted after the transfer
            return ""
        _discard(file)
        return _transfer(url, file, progress)
    except (OSError, HTTPException) as error:
        return first_line(error)
    with response:
        if served is not None and start and response.status == _PARTIAL_CONTENT:
            first, size = _content_range(response.headers)
            if first != start or (size is not None and served.size is not None and size != served.size):
                response.close()
                _discard(file)
                return _transfer(url, file, progress)
        else:  # a new transfer, or the server sends the whole file
            start = 0
            _discard(file)
            record = _ServedFile.of_response(url, response.headers, response.length)
            _record_path(file).write_text(json.dumps(asdict(record)), "utf-8")
        return _receive(response, file, start, progress)


def _receive(response: HTTPResponse, file: Path, start: int, progress: ProgressCallback) -> str:
    """Append a response to the `start` bytes of `file`. Return the reason if it ends early, or else ""."""
    total = start + (response.length or 0)
    _require_disk_space(file.parent, total - start + total)
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
    """Return the first byte and the size of the whole file in Content-Range. None if it has no such number.

    Example:
        >>> headers = Message()
        >>> headers["Content-Range"] = "bytes 5-8/9"
        >>> _content_range(headers)
        (5, 9)
    """
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(?:(\d+)|\*)", headers.get("Content-Range", ""))
    if match is None:
        return None, None
    first = None if match[1] is None else int(match[1])
    size = None if match[2] is None else int(match[2])
    return first, size


def _require_disk_space(folder: Path, num_bytes: int) -> None:
    """Require space for the rest of an archive of images and for its content, which has about its size."""
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
            return
        with tarfile.open(archive) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # missing before Python 3.11.4
            for member in tar:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                    raise ValueError(f"'{member.name[:80]}' is not a file or folder inside the target")
                tar.extract(member, target, set_attrs=False)
    except Exception as error:  # corrupt and hostile archives raise many kinds of errors
        if isinstance(error, OSError) and error.errno is not None:  # the disk, not the archive
            raise
        raise SourceError(f"Cannot unpack {archive.name}: {first_line(error)}.") from None
