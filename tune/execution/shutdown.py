"""Shutdown of `run_jobs` after a signal or if Ray dies on this machine."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console

from prometar.cli.console import handle_signals
from prometar.errors import RESUME
from tune.execution.ray_cluster import head_is_dead, local_node_is_dead, owns_cluster

RAY_DIED = f"Ray died on this machine. {RESUME}"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_HEAD_INTERVAL = 1.0
"""Seconds between two checks of Ray's head."""
_NODE_INTERVAL = 10.0
"""Seconds between two checks of this machine's node."""
_GRACE_SECONDS = 30.0
"""Seconds after Ray's death in which Tune may raise an error. Then the process exits."""


class Shutdown:
    """Shutdown of `run_jobs` after a signal or if Ray dies on this machine.

    Args:
        console: Console for messages about the stop.

    Attributes:
        requested: True after the first signal. Running jobs stop after their current epoch.
        ray_died: True if Ray's head or this machine's node died.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self.requested = False
        self.ray_died = False

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM, and watch Ray.

        The first signal requests a stop, and the second raises KeyboardInterrupt. If Ray dies and Tune raises
        no error within 30 s, the process exits, because Ray's calls may block forever.
        """
        finished = threading.Event()
        with handle_signals(_SIGNALS, self._handle):
            for target in (self._watch_head, self._watch_node):
                threading.Thread(target=target, args=(finished,), daemon=True).start()
            try:
                yield
            finally:
                finished.set()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self._console.print("Stopping after the current epoch. Send the signal again to stop now.")

    def _watch_head(self, finished: threading.Event) -> None:
        """Exit soon after the head dies. Ray itself would wait for a minute and then abort."""
        while not finished.wait(_HEAD_INTERVAL):
            if not head_is_dead():
                continue
            # The head of an existing cluster may restart, so exit only if this process started the cluster,
            # or if a stop was requested anyway.
            may_exit = self.requested or owns_cluster()
            if may_exit and not finished.is_set():
                self._exit_unless_finished(finished)

    def _watch_node(self, finished: threading.Event) -> None:
        """Exit soon after this machine's node dies. Runs in its own thread, because the check may block."""
        while not finished.wait(_NODE_INTERVAL):
            # Only the head knows the state of the node, so a dead head is left to `_watch_head`.
            if not head_is_dead() and local_node_is_dead():
                self._exit_unless_finished(finished)

    def _exit_unless_finished(self, finished: threading.Event) -> None:
        """Exit as soon as a stop is requested, and at the latest after 30 s. Return if the jobs end before.

        Completed epochs are not lost, because each one has a checkpoint.
        """
        self.ray_died = True
        waited = 0.0
        while not self.requested and waited < _GRACE_SECONDS:
            if finished.wait(_HEAD_INTERVAL):
                return
            waited += _HEAD_INTERVAL
        self._console.show_cursor()
        if self.requested:
            self._console.print(f"Interrupted. Ray has stopped too. {RESUME}")
            os._exit(128 + signal.SIGINT)  # the exit status of a command that SIGINT ends
        else:
            self._console.print(RAY_DIED)
            os._exit(1)
