"""Exclusive use of a folder of results by one process."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from prometar.errors import WorkError
from prometar.io.files import refused


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
