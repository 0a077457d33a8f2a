"""When a study is to stop early: at a signal, or when its time is used up."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """Whether a study has been asked to stop, and whether it may begin more trials.

    Args:
        console: Where it says what a signal does.
        max_seconds: Of searching, after which no trial is begun (default None: no end).
        clock: Seconds (default time.monotonic).
    """

    def __init__(
        self,
        console: Console,
        *,
        max_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._max_seconds, self._clock = console, max_seconds, clock
        self._begin = clock()
        self.asked = False

    @property
    def elapsed(self) -> float:
        """Seconds since this began."""
        return self._clock() - self._begin

    def out_of_time(self) -> bool:
        """Whether the time for beginning trials is over."""
        return self._max_seconds is not None and self.elapsed >= self._max_seconds

    @contextmanager
    def listening(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM asks to stop after the running epochs; the second stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._hear) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._console.print(
            "stopping when each running trial has ended its epoch; once more: now, and those epochs are lost"
        )
