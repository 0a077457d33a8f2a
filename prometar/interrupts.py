"""Ctrl-C before a command has begun, while nothing is there that could be lost; SIGTERM while it works."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
MESSAGE = "interrupted; the same command goes on from here"


def end_at_once() -> None:
    """Let an interrupt end this process with one line: amid imports, an exception may become another one."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, _end)


def raise_again() -> None:
    """Undo `end_at_once`: from here on an interrupt is a `KeyboardInterrupt`, which cleans up."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Meanwhile SIGTERM, as batch systems send it, is an interrupt: Ray's own answer is a dump and an abort.

    Of the main thread alone: no other may say what happens at a signal.
    """
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _end(signum: int, frame: FrameType | None) -> None:
    os.write(2, f"error: {MESSAGE}\n".encode())
    os._exit(INTERRUPTED)
