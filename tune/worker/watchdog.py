"""Ends a worker that hangs, and leaves a file that shows where it hung."""

from __future__ import annotations

import faulthandler
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prometar.io.files import refused

ATTEMPTS = 2  # a trial whose worker hangs is tried once more: its machine or file system may have been ill
_FILES = "hung-*.txt"


@contextmanager
def watchdog(folder: Path, timeout_seconds: float | None) -> Iterator[None]:
    """End the process where the block takes longer; every thread's stack is then in `folder`/hung-*.txt.

    It works also where Python's own lock is held, since the watch is not kept in Python.

    Raises:
        StorageError: the folder cannot be written.
    """
    if timeout_seconds is None:
        yield
        return
    # Its own file: Tune may start a second worker of a trial, and drop it when it is there.
    path = folder / f"hung-{socket.gethostname()}-{os.getpid()}.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise refused(path, error) from None
    with file:
        faulthandler.dump_traceback_later(timeout_seconds, exit=True, file=file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
    with suppress(OSError):  # an empty one says nothing
        path.unlink()


def num_hung(folder: Path) -> int:
    """How many workers have hung on what lies in `folder`."""
    return sum(file.stat().st_size > 0 for file in folder.glob(_FILES))  # empty: at work, or ended otherwise


def forgive(folder: Path) -> None:
    """Forget that workers have hung here."""
    for file in folder.glob(_FILES):
        file.unlink(missing_ok=True)


def why_hung(folder: Path, timeout_seconds: float) -> str:
    """The reason of a trial whose attempts have all hung."""
    return (
        f"{ATTEMPTS} workers hung: no result within {timeout_seconds:g} s (--trial-timeout); where they hung "
        f"is in {folder / _FILES}"
    )
