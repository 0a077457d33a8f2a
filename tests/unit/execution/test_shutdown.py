"""Signals, and the death of Ray: when a study stops early."""

import io
import os
import signal
import threading
import time

import pytest
from rich.console import Console

from tune.execution import shutdown
from tune.execution.shutdown import RAY_DIED, Shutdown

INTERRUPTED = 128 + signal.SIGINT  # the exit status of a command that SIGINT ends
TIMEOUT_SECONDS = 30  # for other threads, which normally need less than a second


def new_shutdown() -> tuple[Shutdown, io.StringIO]:
    """A shutdown, and what it prints."""
    printed = io.StringIO()
    return Shutdown(Console(file=printed, width=200)), printed


@pytest.fixture(autouse=True)
def _healthy_ray_with_fast_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutdown, "_HEAD_INTERVAL", 0.05)
    monkeypatch.setattr(shutdown, "_NODE_INTERVAL", 0.05)
    monkeypatch.setattr(shutdown, "_GRACE_SECONDS", 0.2)
    for name in ("head_is_dead", "local_node_is_dead", "owns_cluster"):
        monkeypatch.setattr(shutdown, name, lambda: False)


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> dict[int, threading.Event]:
    """Events by exit status. An event is set when the process would exit with this status."""
    events = {1: threading.Event(), INTERRUPTED: threading.Event()}
    monkeypatch.setattr(os, "_exit", lambda status: events[status].set())
    return events


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_requests_a_stop_and_the_second_stops(number: signal.Signals) -> None:
    stop, printed = new_shutdown()
    handler_before = signal.getsignal(number)
    with stop.watch():
        os.kill(os.getpid(), number)
        assert stop.requested
        assert "Stopping after the current epoch." in printed.getvalue()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is handler_before


@pytest.mark.parametrize("dead", ["head", "node"])
def test_a_study_whose_ray_died_exits_without_a_signal_and_also_outside_of_the_main_thread(
    dead: str, monkeypatch: pytest.MonkeyPatch, exits: dict[int, threading.Event]
) -> None:
    monkeypatch.setattr(shutdown, "head_is_dead", lambda: dead == "head")
    monkeypatch.setattr(shutdown, "owns_cluster", lambda: dead == "head")
    monkeypatch.setattr(shutdown, "local_node_is_dead", lambda: dead == "node")
    stop, printed = new_shutdown()

    def wait_for_exit() -> None:
        with stop.watch():
            assert exits[1].wait(TIMEOUT_SECONDS)

    thread = threading.Thread(target=wait_for_exit)
    thread.start()
    thread.join()

    assert exits[1].is_set()
    assert stop.ray_died
    assert RAY_DIED in printed.getvalue()


def test_a_study_waits_for_the_dead_head_of_an_existing_cluster_which_may_restart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked = threading.Event()

    def is_dead() -> bool:
        checked.set()
        return True

    monkeypatch.setattr(shutdown, "head_is_dead", is_dead)
    stop, _ = new_shutdown()
    with stop.watch():
        assert checked.wait(TIMEOUT_SECONDS)
    assert not stop.ray_died


def test_a_signal_that_also_stops_ray_ends_the_study_at_once(
    monkeypatch: pytest.MonkeyPatch, exits: dict[int, threading.Event]
) -> None:
    """The check of this machine's node blocks meanwhile, because the head that it asks is dead."""
    asking = threading.Event()
    answered = threading.Event()

    def ask_dead_head() -> bool:
        asking.set()
        return not answered.wait(TIMEOUT_SECONDS)

    monkeypatch.setattr(shutdown, "head_is_dead", asking.is_set)
    monkeypatch.setattr(shutdown, "local_node_is_dead", ask_dead_head)
    monkeypatch.setattr(shutdown, "_GRACE_SECONDS", 60.0)  # longer than the test
    stop, printed = new_shutdown()
    with stop.watch():
        assert asking.wait(TIMEOUT_SECONDS)
        stop.requested = True
        assert exits[INTERRUPTED].wait(TIMEOUT_SECONDS)
        answered.set()
    assert "Interrupted. Ray has stopped too." in printed.getvalue()


def test_a_study_that_ends_soon_after_ray_died_does_not_exit_early(
    monkeypatch: pytest.MonkeyPatch, exits: dict[int, threading.Event]
) -> None:
    monkeypatch.setattr(shutdown, "local_node_is_dead", lambda: True)
    monkeypatch.setattr(shutdown, "_GRACE_SECONDS", 60.0)  # longer than the test
    stop, _ = new_shutdown()
    with stop.watch():
        while not stop.ray_died:
            time.sleep(0.01)
    assert not any(event.is_set() for event in exits.values())
