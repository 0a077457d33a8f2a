"""Ends a worker that hangs, and leaves a file that shows where it hung."""

import faulthandler
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from prometar.io.files import refused

ATTEMPTS = 2  # a trial whose worker hangs is tried once more: its machine or file system may have been ill


@dataclass(frozen=True)
class Watchdog:
    """Watches over the work on one job.

    Args:
        folder: Where hung-*.txt tells where workers have hung.
        session: Of the command that asks for the work: what hung in an earlier one does not count.
        timeout_seconds: None: nothing is watched.
    """

    folder: Path
    session: str
    timeout_seconds: float | None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """End the process where the block takes longer; every thread's stack is then in a file.

        It works also where Python's own lock is held, since the watch is not kept in Python.

        Raises:
            StorageError: the folder cannot be written.
        """
        if self.timeout_seconds is None:
            yield
            return
        # Its own file: Tune may start a second worker of a trial, and drop it when it is there.
        path = self.folder / f"hung-{self.session}-{socket.gethostname()}-{os.getpid()}.txt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = path.open("w")
        except OSError as error:
            raise refused(path, error) from None
        with file:
            faulthandler.dump_traceback_later(self.timeout_seconds, exit=True, file=file)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
        with suppress(OSError):  # an empty one says nothing
            path.unlink()

    def verdict(self) -> str:
        """Why the job is given up: all its attempts have hung; "" where not."""
        if self.timeout_seconds is None:
            return ""
        files = self.folder / f"hung-{self.session}-*.txt"
        hung = [file for file in self.folder.glob(files.name) if file.stat().st_size]  # else at work, or done
        if len(hung) < ATTEMPTS:
            return ""
        return (
            f"{ATTEMPTS} workers hung: no result within {self.timeout_seconds:g} s (--trial-timeout); where "
            f"they hung is in {files} on {socket.gethostname()}"
        )
