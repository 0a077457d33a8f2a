"""One process at a time in a folder of results."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometar.errors import WorkError
from prometar.io.files import refused


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold `folder` alone; the lock ends with the process, however it ends.

    Args:
        what: What the folder is, for messages ("the study out/dtd").
    Raises:
        WorkError: another process holds it (says which).
        StorageError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a+")
    except OSError as error:
        raise refused(folder, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise WorkError(f"{what} is being run by process {holder}") from None
        try:
            file.truncate(0)
            os.write(
                file.fileno(), str(os.getpid()).encode()
            )  # past the buffer, which would fail again at close
        except OSError as error:
            raise refused(folder, error) from None
        yield
