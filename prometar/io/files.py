"""Atomic writes, checked reads and folder locks."""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from prometar.errors import InfrastructureError, UserError, WorkError

MACHINE_FAULTS = {errno.EIO, errno.ENODEV, errno.ENOTCONN, errno.ENXIO, errno.ESTALE, errno.ETIMEDOUT}
"""Error numbers of disks and mounts that fail."""

_FIXES = {
    errno.ENOSPC: "Free disk space.",
    errno.EDQUOT: "Free disk space.",
    errno.EROFS: "Make the folder writable.",
    errno.EACCES: "Make the folder writable.",
    errno.EPERM: "Make the folder writable.",
    errno.EISDIR: "Rename or move the folder that has this name.",
}
"""How to fix errors of writing, by error number."""
# Part of the names of temporary files, because containers that share a folder may have equal process IDs.
_PROCESS_TOKEN = os.urandom(4).hex()
_URL = re.compile(r"(s3|gs|gcs|abfss?|hdfs|hf|https?|file):/")


def cache_folder() -> Path:
    """Return the folder of files that can be recomputed: $PROMETAR_CACHE, or ~/.cache/prometar."""
    return Path(os.path.expanduser(os.environ.get("PROMETAR_CACHE") or "~/.cache/prometar"))


def read_bytes(path: Path) -> bytes:
    """Return the content of a regular file. Pipes and devices are rejected, because they may never end.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
    """
    try:
        # O_NONBLOCK opens a pipe without waiting for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:
        raise OSError(errno.EINVAL, "the name contains a NUL", str(path)) from None
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return file.read()


def read_text(path: Path) -> str:
    """Return the content of a text file, without the byte order mark that some editors write.

    Raises:
        UserError: the file cannot be read, or is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text.") from None


def is_recordable(path: Path | str) -> bool:
    """Return True if `path` is UTF-8 without NUL, so that records and databases can store it."""
    try:
        return b"\0" not in str(path).encode()
    except UnicodeEncodeError:
        return False


def require_recordable(path: Path | str) -> None:
    """Raise a UserError if records and databases cannot store `path` (see `is_recordable`)."""
    if not is_recordable(path):
        raise UserError(f"The path {str(path)!a} is not UTF-8 or contains a NUL. Rename the file or folder.")


def resolve_path(path: Path | str) -> Path:
    """Return the absolute path, with symbolic links and a leading ~ resolved.

    Raises:
        UserError: `path` is a URL or a cycle of links, cannot be recorded, or the current folder was deleted.
    """
    require_recordable(path)
    url = _URL.match(str(path))
    if url is not None:
        raise UserError(
            f"'{url[0]}...' is not a local path. Only --data-root and `prometar data prepare --to` accept "
            "URLs, such as s3://bucket/path."
        )
    try:
        resolved = Path(os.path.realpath(os.path.expanduser(path)))
    except OSError as error:  # the current folder was deleted
        raise UserError(f"cannot resolve {path}: {error.strerror}.") from None
    try:
        resolved.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:  # links form a cycle. Other errors are allowed, such as a missing path
            raise UserError(f"cannot resolve {path}: {error.strerror}.") from None
    require_recordable(resolved)
    return resolved


def file_size(path: Path) -> int | None:
    """Return the size of a regular file in bytes, or None if it does not exist.

    Raises:
        UserError: `path` is a folder, a pipe or a device, or cannot be accessed.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from None
    except ValueError as error:  # the path contains a NUL
        raise UserError(f"cannot read {path}: {error}.") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is not a regular file.")
    return status.st_size


def cannot_write_error(path: Path, error: OSError) -> InfrastructureError:
    """Return the error for a file that cannot be written, with a fix in its message if one is known.

    Example:
        >>> print(cannot_write_error(Path("out/a"), OSError(errno.ENOSPC, "No space left on device")))
        cannot write out/a: No space left on device. Free disk space.
    """
    message = f"cannot write {path}: {error.strerror or error}."
    if error.errno in _FIXES:
        message += f" {_FIXES[error.errno]}"
    return InfrastructureError(message)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file atomically: readers see either the old or the new content, even after a crash.

    Raises:
        InfrastructureError: the file cannot be written, for example because the disk is full.
    """
    temporary = path.parent / f".{path.name}.{os.getpid()}-{_PROCESS_TOKEN}"
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
        raise cannot_write_error(path, error) from None


@contextmanager
def lock_folder(folder: Path, label: str) -> Iterator[None]:
    """Lock `folder` until the `with` block ends. If the process dies, the operating system unlocks it.

    Missing folders are created. If the block fails before it writes files, these folders are deleted.

    Args:
        label: Name of the folder in messages, such as "the study out/dtd".

    Raises:
        WorkError: another process has locked the folder.
        InfrastructureError: the folder is not writable, or its file system does not support locks.
    """
    missing_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = FileLock(folder / "lock", timeout=0, fallback_to_soft=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise WorkError(f"{label} is in use by another process. Stop it, or try again later.") from None
    except OSError as error:
        raise cannot_write_error(Path(error.filename or folder), error) from None
    try:
        yield
    except BaseException:
        with suppress(OSError):
            has_only_lock = [path.name for path in folder.iterdir()] == ["lock"]
            if missing_folders and has_only_lock:
                (folder / "lock").unlink()
                for path in missing_folders:
                    path.rmdir()
        raise
    finally:
        lock.release()
