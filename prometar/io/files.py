"""Files that are complete or absent, and folders that one process uses."""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from prometar.errors import StorageError, UserError, WorkError

_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it writable"),
    errno.EISDIR: "move that folder away",
}
_OWN = os.urandom(4).hex()  # containers that share a folder may have equal process numbers


def read_bytes(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: it cannot be read, or is a folder, a pipe or a device, which might never end.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would block
    except ValueError:
        raise OSError(errno.EINVAL, "the name contains a null character", str(path)) from None
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        return file.read()


def read_text(path: Path) -> str:
    """Return the content of a text file.

    Raises:
        UserError: it cannot be read, or is not UTF-8 text.
    """
    try:
        return read_bytes(path).decode()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text") from None


def is_utf8(path: Path | str) -> bool:
    """Return True if records, manifests and databases can contain a path: UTF-8 without null characters."""
    try:
        return b"\0" not in str(path).encode()
    except UnicodeEncodeError:
        return False


def require_utf8(path: Path | str) -> None:
    """Refuse a path that records cannot contain.

    Raises:
        UserError: the path is not `is_utf8`.
    """
    if not is_utf8(path):
        raise UserError(f"the path {str(path)!a} is not UTF-8, or holds a null character: take another name")


def resolved(path: Path | str) -> Path:
    """Return an absolute path without links and a leading ~.

    Raises:
        UserError: not `is_utf8`, a circle of links, or a URL.
    """
    require_utf8(path)
    if url := re.match(r"(s3|gs|gcs|abfss?|hdfs|hf|https?|file):/", str(path)):
        raise UserError(
            f"'{url[0]}...' is no folder: a URL begins with {url[1]}://, and stands only where one can, as "
            "after --data-root"
        )
    found = None
    try:
        found = Path(os.path.realpath(os.path.expanduser(path)))
        found.stat()
    except OSError as error:
        if found is None or error.errno == errno.ELOOP:  # None: the current folder was removed
            raise UserError(f"cannot follow {path}: {error.strerror}") from None
    require_utf8(found)
    return found


def size_of(path: Path) -> int | None:
    """Return the size of a regular file in bytes, or None if there is none.

    Raises:
        UserError: it is a folder, a pipe or a device, or cannot be accessed.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path} is no plain file")
    return found.st_size


def refused(path: Path, error: OSError) -> StorageError:
    """Return the error of a file that cannot be written, with advice if there is any.

    Example:
        >>> print(refused(Path("out/a"), OSError(errno.ENOSPC, "No space left on device")))
        cannot write out/a: No space left on device: make room
    """
    problem = f"cannot write {path}: {error.strerror or error}"
    return StorageError(f"{problem}: {_ADVICE[error.errno]}" if error.errno in _ADVICE else problem)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader finds the old or the new one, complete, also after a crash.

    Raises:
        StorageError: the disk is full or the folder is not writable.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{_OWN}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise refused(path, error) from None


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Lock `folder`. The lock ends with the process, however it ends.

    Folders that were created for it are removed if an error leaves them empty.

    Args:
        what: Name of the folder in messages ("the study out/dtd").

    Raises:
        WorkError: another process has locked it.
        StorageError: the folder is not writable, or its file system has no locks.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = FileLock(folder / "lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise WorkError(f"{what} is in use by another process. Wait until it ends, or stop it.") from None
    except OSError as error:
        raise refused(Path(error.filename or folder), error) from None
    try:
        yield
    except BaseException:
        with suppress(OSError):
            if created and [path.name for path in folder.iterdir()] == ["lock"]:
                (folder / "lock").unlink()
                for path in created:
                    path.rmdir()
        raise
    finally:
        lock.release()
