"""Early end of a study: at a signal, or if Ray dies on this machine."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console

from prometar.cli.console import handled
from tune.execution.local_ray import head_is_gone, own_node_is_gone, started_here

RESUME = "Rerun the same command to resume."
RAY_DIED = f"Ray died on this machine. {RESUME}"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_HEAD_SECONDS, _NODE_SECONDS = 1.0, 10.0
"""Seconds between two looks at Ray's head and at this machine's node."""
_GRACE_SECONDS = 30.0
"""Seconds that Tune gets to raise an error of its own after Ray died."""


class Stopping:
    """State of an early end.

    Attributes:
        requested: True after the first signal. Running jobs end after their current epoch.
        ray_died: True after Ray's head or node on this machine died.

    Args:
        console: Where signals are acknowledged.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self.requested = self.ray_died = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM, and watch Ray.

        The first signal requests a stop, the second raises KeyboardInterrupt. If Ray dies, its calls may
        block for ever. Then the process exits.
        """
        over = threading.Event()
        with handled(_SIGNALS, self._handle):
            for watch in (self._watch_head, self._watch_node):
                threading.Thread(target=watch, args=(over,), daemon=True).start()
            try:
                yield
            finally:
                over.set()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._console.print(
            "Stopping after the current epoch of each running trial. Send the signal again to stop now."
        )

    def _watch_head(self, over: threading.Event) -> None:
        """Without this, Ray waits a minute for its head and then aborts."""
        while not over.wait(_HEAD_SECONDS):
            # A stop of the whole process group ends Ray too. The head of a cluster may come back.
            if head_is_gone() and (self.requested or started_here()) and not over.is_set():
                self._end(over)

    def _watch_node(self, over: threading.Event) -> None:
        """A thread of its own, since the question may block if the head dies meanwhile."""
        while not over.wait(_NODE_SECONDS):
            if not head_is_gone() and own_node_is_gone():
                self._end(over)

    def _end(self, over: threading.Event) -> None:
        """Exit unless the main thread does so itself. Everything reported is already on disk."""
        self.ray_died = True
        waited = 0.0
        while not self.requested and waited < _GRACE_SECONDS:
            if over.wait(_HEAD_SECONDS):
                return
            waited += _HEAD_SECONDS
        self._console.show_cursor()
        self._console.print(f"Interrupted, and Ray has ended too. {RESUME}" if self.requested else RAY_DIED)
        os._exit(128 + signal.SIGINT if self.requested else 1)
