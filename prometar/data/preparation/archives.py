"""Unpack an archive that nobody vouches for: files and folders only, below the target, of a bounded size."""

import gzip
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO, cast

from prometar.errors import WorkError, first_line

# Photographs hardly shrink: what grows more than this was made to fill the disk.
MAX_GROWTH, MAX_SLACK_BYTES = 10, 2**28
MAX_FILES = 2_000_000
MAX_HEADER_BYTES = 2**20  # long names, and maps of sparse files, are read as a whole


def unpack(archive: Path, target: Path) -> None:
    """Unpack a .zip, .tar, .tar.gz or .tgz into the folder `target`.

    Anything but files and folders (links, devices) is refused, as are paths that leave `target` and more than
    10 times the archive's size + 256 MiB. What was unpacked before that stays in `target`: unpack to a folder
    of its own, and take from it after success.

    Raises:
        WorkError: refused, or the archive is damaged; names the archive and the member.
    """
    target.mkdir(parents=True)
    budget = _Budget(archive)
    with _damage(archive):
        if zipfile.is_zipfile(archive):
            _unzip(archive, target, budget)
        else:
            _untar(archive, target, budget)


class _Budget:
    """Refuses members by path, kind, size and number."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        self.bytes = archive.stat().st_size * MAX_GROWTH + MAX_SLACK_BYTES
        self.files = MAX_FILES

    def admit(self, name: str, *, plain: bool, size: int) -> None:
        path = PurePosixPath(name)
        if not name:
            raise self._refused(name, "has no name")
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
            raise self._refused(name, "leaves the target folder")
        if not plain:
            raise self._refused(name, "is neither a file nor a folder")
        self.bytes -= size
        self.files -= 1
        if self.bytes < 0 or self.files < 0:
            raise self._refused(name, "makes it larger than an archive of images can be")

    def _refused(self, name: str, why: str) -> WorkError:
        return WorkError(f"archive {self.archive} is not unpacked: its member '{name[:80]}' {why}")


def _untar(archive: Path, target: Path, budget: _Budget) -> None:
    with archive.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    with (gzip.open if zipped else open)(archive, "rb") as file:
        metered = _Metered(cast(IO[bytes], file), archive)
        with tarfile.open(fileobj=cast(IO[bytes], metered), mode="r:") as tar:
            for member in tar:
                budget.admit(member.name, plain=member.isfile() or member.isdir(), size=member.size)
                metered.room = member.size
                _write(tar, member, target / member.name)
                metered.room = MAX_HEADER_BYTES


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    """Its content alone: rights and times are ours. `tar.extract` is as safe from Python 3.11.4 on only."""
    (path if member.isdir() else path.parent).mkdir(parents=True, exist_ok=True)
    if (content := tar.extractfile(member)) is not None:
        with content, path.open("wb") as file:
            shutil.copyfileobj(content, file)


class _Metered:
    """A file of which no more than `room` bytes are read: between two files only what leads to the next."""

    def __init__(self, file: IO[bytes], archive: Path) -> None:
        self._file, self._archive, self.room = file, archive, MAX_HEADER_BYTES
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        self.room -= size
        if self.room < 0:
            raise WorkError(f"archive {self._archive} is not unpacked: it has a header of too many bytes")
        return self._file.read(size)


def _unzip(archive: Path, target: Path, budget: _Budget) -> None:
    with zipfile.ZipFile(archive) as packed:
        for info in packed.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
            budget.admit(info.filename, plain=plain, size=info.file_size)
            packed.extract(info, target)


@contextmanager
def _damage(archive: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, LZMAError, EOFError) as error:
        said = first_line(error)
        raise WorkError(f"archive {archive} is damaged ({said}): delete it and run again") from None
    # The latter three: what Python's readers raise over strange members, as of a time beyond all clocks.
    except (OSError, RuntimeError, ValueError, LookupError, OverflowError, struct.error) as error:
        raise WorkError(f"cannot unpack {archive}: {first_line(error)}") from None
