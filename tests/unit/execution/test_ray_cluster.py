"""Start of and connection to Ray: options, addresses and one-line errors."""

import os
import signal
import socket
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import ray

from prometar.errors import UserError, WorkError
from tune.execution import ray_cluster
from tune.execution.ray_cluster import local_node_is_dead, start_ray

Init = Callable[[Callable[..., None]], None]


@pytest.fixture
def init(monkeypatch: pytest.MonkeyPatch) -> Init:
    """Replaces `ray.init` in a process where Ray does not run."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "nodes", list)
    return lambda start: monkeypatch.setattr(ray, "init", start)


@pytest.mark.parametrize(("cpus", "expected"), [(8, 3), (3, None)])
def test_a_batch_job_gets_its_own_cpus_only(
    cpus: int, expected: int | None, init: Init, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: dict[str, object] = {}
    init(lambda **options: started.update(options))
    monkeypatch.setattr(ray_cluster, "usable_cpus", lambda: 3)
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    start_ray()
    assert (started.get("num_cpus"), started["num_gpus"], started["address"]) == (expected, 0, "local")


def test_signal_handlers_are_those_from_before(init: Init) -> None:
    def start(**options: object) -> None:
        assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN, "Ray's workers would inherit it"
        signal.signal(signal.SIGTERM, lambda number, frame: None)

    init(start)

    def terminate(number: int, frame: object) -> None:
        pass

    before = signal.signal(signal.SIGINT, signal.SIG_IGN), signal.signal(signal.SIGTERM, terminate)
    try:
        start_ray()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is terminate
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("ray://head:10001", "Ray Client is not supported"),
        ("head", "--address must be auto or HOST:PORT"),
        ("head:port", "--address must be auto or HOST:PORT"),
    ],
)
def test_invalid_addresses(address: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        start_ray(address=address)


def test_an_address_is_not_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_require_server", "head_is_dead", "local_node_is_dead"):
        monkeypatch.setattr(ray_cluster, name, lambda *_: False)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray_cluster, "_owns_cluster", True)
    with pytest.raises(UserError, match="has started its own Ray"):
        start_ray(address="head:6379")


def test_errors_of_ray_are_one_line(init: Init) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(WorkError, match=f"^Cannot connect to Ray at {address}: .*refused\\. Check"):
        start_ray(address=address)
    attempts = []

    def start(**options: object) -> None:
        attempts.append(options)
        raise RuntimeError("Version mismatch: Ray 2.60 and 2.61.\nMore lines.")

    init(start)
    with pytest.raises(WorkError, match=r"^Cannot start Ray: Version mismatch: Ray 2\.60 and 2\.61\.$"):
        start_ray()
    assert len(attempts) == 2


@pytest.mark.parametrize(("own", "gone"), [("a", False), ("b", True)])
def test_a_dead_node_of_this_machine(own: str, gone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"NodeID": "a", "Alive": True}, {"NodeID": "b", "Alive": False}]
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: own))
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert local_node_is_dead() is gone
