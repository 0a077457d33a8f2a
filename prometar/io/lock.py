"""One process at a time in a folder of results."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from prometar.errors import WorkError
from prometar.io.files import refused


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold `folder` alone; the lock ends with the process, however it ends.

    Folders made for it go again where an error leaves nothing in them.

    Args:
        what: What the folder is, for messages ("the study out/dtd").
    Raises:
        WorkError: another process holds it (says which), or its file system has no locks.
        StorageError: the folder cannot be written.
    """
    made = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    with _held(folder, what) as file:
        holder = f"{os.getpid()} on {socket.gethostname()}"
        try:
            file.truncate(0)
            os.write(file.fileno(), holder.encode())  # past the buffer, which would fail again at close
        except OSError as error:
            raise refused(folder, error) from None
        try:
            yield
        except BaseException:
            with suppress(OSError):
                if made and os.listdir(folder) == ["lock"]:
                    (folder / "lock").unlink()
                    for path in made:
                        path.rmdir()
            raise


def _held(folder: Path, what: str) -> TextIO:
    """The lock's file, locked: the one that is there, and not one that its last holder has just removed."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / "lock").open("a+")
        except IsADirectoryError as error:
            raise refused(folder / "lock", error) from None
        except OSError as error:
            raise refused(folder, error) from None
        with suppress(FileNotFoundError), ExitStack() as opened:
            opened.enter_context(file)
            _lock(file, folder, what)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(file.name)):
                opened.pop_all()
                return file


def _lock(file: TextIO, folder: Path, what: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        raise WorkError(f"{what} is being run by process {holder}") from None
    except OSError as error:
        said = f"cannot lock {folder}: {error.strerror or error}"
        raise WorkError(f"{said}: choose a folder on another file system") from None


def leave(folder: Path) -> None:
    """Remove a folder that was `locked`, and the one that it lies in, where nothing is left in them.

    Not while it is locked: what is open stays in its folder on NFS, whoever removes it.
    """
    for each in (folder, folder.parent):
        with suppress(OSError):
            each.rmdir()
