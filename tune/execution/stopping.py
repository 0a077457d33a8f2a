"""When a study is to stop early: at a signal, or when its time is used up."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from types import FrameType

from rich.console import Console

from prometar.cli.console import INTERRUPTED, MESSAGE, handled
from prometar.distributed.local_ray import head_is_gone, own_node_is_gone, started_here
from prometar.errors import WorkError
from tune.optimizer.storage import GO_ON

_LOOK, _PATIENCE = 10, 30  # seconds
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """Whether a study has been asked to stop, and whether it may begin more trials.

    `died`: What there is to say where Ray's part on this machine has died: nothing runs any more.

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
        self.died = ""

    @property
    def elapsed(self) -> float:
        """Seconds since this began."""
        return self._clock() - self._begin

    def out_of_time(self) -> bool:
        """Whether the time for beginning trials is over."""
        return self._max_seconds is not None and self.elapsed >= self._max_seconds

    @contextmanager
    def listening(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM asks to stop after the running epochs; the second stops at once.

        Where the same signal has ended Ray, as a batch system's does, no epoch will end: this process does.
        """
        over = threading.Event()
        with handled(_SIGNALS, self._hear):
            for watch in (self._watch_head, self._watch_node):
                threading.Thread(target=watch, args=(over,), daemon=True).start()
            try:
                yield
            finally:
                over.set()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._console.print(
            "stopping when each running trial has ended its epoch; once more: now, and those epochs are lost"
        )

    def _watch_head(self, over: threading.Event) -> None:
        """Left to itself, Ray would look for its head for a minute and then abort."""
        for second in count():
            if over.wait(1):
                return
            look = second % _LOOK == 0
            gone = (self.asked or look) and head_is_gone()
            if self.asked and gone and not over.is_set():  # else it has just been closed
                self._end(f"Ray has been ended too; {MESSAGE}", INTERRUPTED)
            if look and gone and started_here():  # elsewhere a head may come back
                self._mourn(over)

    def _watch_node(self, over: threading.Event) -> None:
        """Ray waits for its node, and whom it asks about it may end meanwhile: then there is no answer."""
        while not over.wait(_LOOK):
            if not head_is_gone() and own_node_is_gone():
                self._mourn(over)

    def _mourn(self, over: threading.Event) -> None:
        self.died = f"Ray has died on this machine; {GO_ON}"
        if not over.wait(_PATIENCE):  # else the study has ended with an error
            self._end(self.died, WorkError.exit_code)

    def _end(self, message: str, status: int) -> None:
        """Nothing of Ray can be closed any more; what was told is on disk."""
        self._console.show_cursor()
        self._console.print(message)
        os._exit(status)
