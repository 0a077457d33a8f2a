"""Ctrl-C before a command has begun, while nothing is there that could be lost; signals while it works."""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
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
def handled(numbers: Iterable[int], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Meanwhile, `handler` says what happens at these signals.

    Of the main thread alone: no other may say that.
    """
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers} if main else {}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)


def _end(signum: int, frame: FrameType | None) -> None:
    os.write(2, f"error: {MESSAGE}\n".encode())
    os._exit(INTERRUPTED)
