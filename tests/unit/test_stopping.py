"""Signals and time: when a study stops early."""

import io
import os
import signal
import threading
import time

import pytest
from rich.console import Console

from prometar.cli.console import INTERRUPTED
from prometar.errors import WorkError
from tune.execution import stopping
from tune.execution.course import RelayedCallback, Running
from tune.execution.stopping import Stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_stops(number: signal.Signals) -> None:
    said = io.StringIO()
    stop = Stopping(Console(file=said, width=200))
    before = signal.getsignal(number)
    with stop.listening():
        os.kill(os.getpid(), number)
        assert stop.asked
        assert "stopping when each running trial has ended its epoch" in said.getvalue()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_time_runs_out() -> None:
    now = 10.0
    stop = Stopping(Console(file=io.StringIO()), max_seconds=5.0, clock=lambda: now)
    assert not stop.out_of_time()
    now = 14.9
    assert not stop.out_of_time()
    now = 15.0
    assert stop.out_of_time()
    assert stop.elapsed == 5.0
    assert not Stopping(Console(file=io.StringIO())).out_of_time()


DEAD = "Ray has died on this machine; the same command goes on from here"


@pytest.mark.parametrize("head", [False, True])
def test_nobody_waits_for_a_ray_that_has_died(monkeypatch: pytest.MonkeyPatch, head: bool) -> None:
    """Without a signal, and in any thread: no epoch would ever end."""
    said, ended = io.StringIO(), threading.Event()
    monkeypatch.setattr(stopping, "head_is_gone", lambda: head)
    monkeypatch.setattr(stopping, "started_here", lambda: head)
    monkeypatch.setattr(stopping, "own_node_is_gone", lambda: not head)
    monkeypatch.setattr(stopping, "_PATIENCE", 0.1)
    monkeypatch.setattr(stopping, "_LOOK", 1)
    monkeypatch.setattr(os, "_exit", lambda status: ended.set() if status == 1 else None)

    def run() -> None:
        with Stopping(Console(file=said, width=200)).listening():
            assert ended.wait(30)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert DEAD in said.getvalue()


def test_a_head_that_ends_while_it_is_asked_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal to all of Ray: who asks for this machine's node meanwhile gets no answer for a minute."""
    said, ended, asking, answered = io.StringIO(), threading.Event(), threading.Event(), threading.Event()

    def no_answer() -> bool:
        asking.set()
        return not answered.wait(30)

    monkeypatch.setattr(stopping, "head_is_gone", asking.is_set)
    monkeypatch.setattr(stopping, "own_node_is_gone", no_answer)
    monkeypatch.setattr(stopping, "_LOOK", 0.1)
    monkeypatch.setattr(os, "_exit", lambda status: ended.set() if status == INTERRUPTED else None)
    stop = Stopping(Console(file=said, width=200))
    with stop.listening():
        assert asking.wait(30)
        stop.asked = True
        assert ended.wait(30)
        answered.set()
    assert "Ray has been ended too" in said.getvalue()


def test_a_study_that_can_still_end_does_so_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "head_is_gone", lambda: False)
    monkeypatch.setattr(stopping, "own_node_is_gone", lambda: True)
    monkeypatch.setattr(stopping, "_LOOK", 0.1)
    stop = Stopping(Console(file=io.StringIO()))
    callback = RelayedCallback(Running(iter(())), stop)  # type: ignore[arg-type]
    callback.on_step_begin(0, [])
    with stop.listening():
        end = time.monotonic() + 30
        while not stop.died and time.monotonic() < end:
            time.sleep(0.01)
        with pytest.raises(WorkError, match=DEAD):
            callback.on_step_begin(1, [])
