"""Files that are whole or not there."""

import errno
import os
import re
import stat
from contextlib import suppress
from pathlib import Path

from prometar.errors import StorageError, UserError


def read_bytes(path: Path) -> bytes:
    """The content of a plain file.

    Raises:
        OSError: it cannot be read, or is a folder, a pipe or a device: reading one may never end.
    """
    try:
        # Without waiting: to open a pipe would wait for somebody who writes into it.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:  # a null character in the name
        raise OSError(errno.EINVAL, "no name of a file", str(path)) from None
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        return file.read()


def is_utf8(path: Path | str) -> bool:
    """Whether records, manifests and databases can hold a path: it is UTF-8, and without a null character."""
    try:
        return b"\0" not in str(path).encode()
    except UnicodeEncodeError:
        return False


def require_utf8(path: Path | str) -> None:
    """Raises a UserError where it is not `is_utf8`."""
    if not is_utf8(path):
        raise UserError(f"the path {str(path)!a} is not UTF-8, or holds a null character: take another name")


def require_no_url(path: Path | str) -> None:
    """Raises a UserError where a folder was meant as a URL: a path makes one slash of its two."""
    if url := re.match(r"(s3|gs|gcs|abfss?|hdfs|hf|https?|file):/", str(path)):
        raise UserError(
            f"'{url[0]}...' is no folder: a URL begins with {url[1]}://, "
            "and stands only where one can, as after --data-root and --files"
        )


def resolved(path: Path | str) -> Path:
    """A path from the root on, links followed, and a leading ~ as the home that it is: `--out=~/x` keeps it.

    Raises:
        UserError: not `is_utf8`, links in a circle, or meant as a URL.
    """
    require_utf8(path)
    require_no_url(path)
    found = None
    try:
        found = Path(os.path.realpath(os.path.expanduser(path)))
        found.stat()  # a circle is left as it is, and Path.resolve tells of it up to Python 3.12 alone
    except OSError as error:
        if found is None or error.errno == errno.ELOOP:  # none: the folder we are in is gone
            raise UserError(f"cannot follow {path}: {error.strerror}") from None
    require_utf8(found)
    return found


def size_of(path: Path) -> int | None:
    """The bytes of a file, links followed; None where there is nothing.

    Raises:
        UserError: it is a folder, a pipe or a device (reading one may never end), or cannot be looked at.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # no rights, too long a name, a circle of links, a null character
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path} is no plain file")
    return found.st_size


_TO_DO = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it writable"),
    errno.EISDIR: "move that folder away",
}


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, by name; nothing where it is not there.

    Raises:
        UserError: it cannot be read (`Path.glob` would find nothing).
    """
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from None


def refused(path: Path, error: OSError) -> StorageError:
    """What is said of a file that cannot be written: which, why, and what to do where that is known.

    Example:
        >>> print(refused(Path("out/a"), OSError(errno.ENOSPC, "No space left on device")))
        cannot write out/a: No space left on device: make room
    """
    said = f"cannot write {path}: {error.strerror or error}"
    return StorageError(f"{said}: {_TO_DO[error.errno]}" if error.errno in _TO_DO else said)


_REFUSED = (
    StorageError.__name__, "No space left on device", "Disk quota exceeded", "Read-only file system",
    "No usable temporary directory", "local object store is full",
)  # fmt: skip


def is_refused_write(reason: str) -> bool:
    """Whether a worker's error says that nothing can be kept where it runs.

    It is our own error, the system's of what other packages write (Ray Tune's folder of a trial), or Ray's
    where its memory and the disk that it spills to are full.

    Example:
        >>> is_refused_write("OSError: [Errno 28] No space left on device: '/tmp/ray'")
        True
    """
    return any(sign in reason for sign in _REFUSED)


_OWN = os.urandom(4).hex()


def beside(name: str) -> str:
    """The hidden name under which this process writes a file before it takes its place.

    A process's number alone would not do: containers that share a folder have the same ones.
    """
    return f".{name}.{os.getpid()}-{_OWN}"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader finds the old one or the new one, whole, also after a crash.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(beside(path.name))
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
