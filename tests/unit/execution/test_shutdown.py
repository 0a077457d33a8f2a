"""Signals, and the death of Ray: when a study stops early."""

import io
import os
import signal
import threading

import pytest
from rich.console import Console

from tune.execution import shutdown
from tune.execution.shutdown import RAY_DIED, Shutdown


def new() -> tuple[Shutdown, io.StringIO]:
    said = io.StringIO()
    return Shutdown(Console(file=said, width=200)), said


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("_HEAD_INTERVAL", 0.05), ("_NODE_INTERVAL", 0.05), ("_GRACE_SECONDS", 0.2)):
        monkeypatch.setattr(shutdown, name, seconds)
    for name in ("head_is_dead", "local_node_is_dead", "owns_cluster"):
        monkeypatch.setattr(shutdown, name, lambda: False)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> dict[int, threading.Event]:
    """Events that are set where the process would exit, by status."""
    events = {1: threading.Event(), 130: threading.Event()}
    monkeypatch.setattr(os, "_exit", lambda status: events[status].set())
    return events


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_requests_a_stop_and_the_second_stops(number: signal.Signals) -> None:
    stop, said = new()
    before = signal.getsignal(number)
    with stop.watch():
        os.kill(os.getpid(), number)
        assert stop.requested
        assert "Stopping after the current epoch." in said.getvalue()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("head", [False, True])
def test_a_study_whose_ray_died_exits(
    monkeypatch: pytest.MonkeyPatch, ended: dict[int, threading.Event], head: bool
) -> None:
    """Without a signal, and in any thread: no epoch would ever end."""
    monkeypatch.setattr(shutdown, "head_is_dead", lambda: head)
    monkeypatch.setattr(shutdown, "owns_cluster", lambda: head)
    monkeypatch.setattr(shutdown, "local_node_is_dead", lambda: not head)
    stop, said = new()

    def run() -> None:
        with stop.watch():
            assert ended[1].wait(30)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert stop.ray_died
    assert RAY_DIED in said.getvalue()


def test_a_head_elsewhere_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = threading.Event()

    def gone() -> bool:
        looked.set()
        return True

    monkeypatch.setattr(shutdown, "head_is_dead", gone)
    stop, _ = new()
    with stop.watch():
        assert looked.wait(30)
    assert not stop.ray_died


def test_a_signal_to_all_of_ray_ends_the_study_at_once(
    monkeypatch: pytest.MonkeyPatch, ended: dict[int, threading.Event]
) -> None:
    """Whoever asks for this machine's node meanwhile gets no answer for a minute."""
    asking = threading.Event()
    answered = threading.Event()

    def no_answer() -> bool:
        asking.set()
        return not answered.wait(30)

    monkeypatch.setattr(shutdown, "head_is_dead", asking.is_set)
    monkeypatch.setattr(shutdown, "local_node_is_dead", no_answer)
    monkeypatch.setattr(shutdown, "_GRACE_SECONDS", 60.0)
    stop, said = new()
    with stop.watch():
        assert asking.wait(30)
        stop.requested = True
        assert ended[130].wait(30)
        answered.set()
    assert "Interrupted. Ray has stopped too." in said.getvalue()


def test_a_study_that_can_still_end_does_so_itself(
    monkeypatch: pytest.MonkeyPatch, ended: dict[int, threading.Event]
) -> None:
    monkeypatch.setattr(shutdown, "local_node_is_dead", lambda: True)
    monkeypatch.setattr(shutdown, "_GRACE_SECONDS", 60.0)
    stop, _ = new()
    died = threading.Event()
    with stop.watch():
        while not stop.ray_died:
            died.wait(0.01)
    assert not any(event.is_set() for event in ended.values())
