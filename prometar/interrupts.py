"""Ctrl-C before a command has begun: while Python still imports, nothing is there that could be lost."""

from __future__ import annotations

import os
import signal
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


def _end(signum: int, frame: FrameType | None) -> None:
    os.write(2, f"error: {MESSAGE}\n".encode())
    os._exit(INTERRUPTED)
