"""Start of and connection to Ray: options, addresses and one-line errors."""

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch

from prometar.errors import UserError, WorkError
from tune.execution import ray_cluster
from tune.execution.ray_cluster import local_node_is_dead, start_ray

Init = Callable[[Callable[..., None]], None]
"""Function that replaces `ray.init` by its argument."""


@pytest.fixture
def init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Init:
    """Replaces `ray.init` in a process where Ray does not run and has never written a token."""
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setattr(ray_cluster, "_TOKEN_FILE", tmp_path / "missing")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "nodes", list)
    return lambda start: monkeypatch.setattr(ray, "init", start)


@pytest.mark.parametrize(
    ("cpus_of_machine", "num_cpus"), [(8, 3), (3, None)], ids=["part-of-a-machine", "whole-machine"]
)
def test_a_local_cluster_has_only_the_cpus_that_this_process_can_use(
    cpus_of_machine: int, num_cpus: int | None, init: Init, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: dict[str, object] = {}
    init(lambda **options: started.update(options))
    monkeypatch.setattr(ray_cluster, "usable_cpus", lambda: 3)
    monkeypatch.setattr(os, "cpu_count", lambda: cpus_of_machine)

    start_ray()

    assert started["address"] == "local"
    assert started.get("num_cpus") == num_cpus, "without the option, Ray uses all CPUs of the machine"
    assert started["num_gpus"] == 0


def test_signal_handlers_are_those_from_before(init: Init) -> None:
    def start(**options: object) -> None:
        assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN, "Ray's workers would inherit it"
        signal.signal(signal.SIGTERM, lambda number, frame: None)

    def terminate(number: int, frame: object) -> None:
        pass

    init(start)
    interrupt_of_pytest = signal.signal(signal.SIGINT, signal.SIG_IGN)
    terminate_of_pytest = signal.signal(signal.SIGTERM, terminate)
    try:
        start_ray()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is terminate
    finally:
        signal.signal(signal.SIGINT, interrupt_of_pytest)
        signal.signal(signal.SIGTERM, terminate_of_pytest)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://head:10001", "Ray Client is not supported"),
        ("head", "--address must be auto or HOST:PORT"),
        ("head:port", "--address must be auto or HOST:PORT"),
    ],
)
def test_an_invalid_address_is_refused(address: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        start_ray(address=address)


def test_an_address_is_refused_if_the_process_has_started_a_cluster_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_require_server", "head_is_dead", "local_node_is_dead"):
        monkeypatch.setattr(ray_cluster, name, lambda *_: False)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray_cluster, "_owns_cluster", True)
    with pytest.raises(UserError, match="has started its own Ray"):
        start_ray(address="head:6379")


def test_a_cluster_that_cannot_be_reached_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        _, port = server.getsockname()
    address = f"127.0.0.1:{port}"  # nobody listens there any more
    with pytest.raises(WorkError, match=f"^Cannot connect to Ray at {address}: .*refused\\. Check"):
        start_ray(address=address)


def test_an_error_of_ray_is_one_line_after_a_second_attempt(init: Init) -> None:
    attempts: list[object] = []

    def start(**options: object) -> None:
        attempts.append(options)
        raise RuntimeError("Version mismatch: Ray 2.60 and 2.61.\nMore lines.")

    init(start)
    with pytest.raises(WorkError, match=r"^Cannot start Ray: Version mismatch: Ray 2\.60 and 2\.61\.$"):
        start_ray()
    assert len(attempts) == 2


@pytest.mark.parametrize(("this_node", "is_dead"), [("a", False), ("b", True)])
def test_only_a_dead_node_of_this_machine_counts(
    this_node: str, is_dead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = SimpleNamespace(get_node_id=lambda: this_node)
    nodes = [{"NodeID": "a", "Alive": True}, {"NodeID": "b", "Alive": False}]
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)

    assert local_node_is_dead() is is_dead


def test_a_local_cluster_gets_a_token_in_memory_that_later_processes_do_not_inherit(
    init: Init, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens: list[str] = []
    init(lambda **options: tokens.append(os.environ["RAY_AUTH_TOKEN"]))

    start_ray()
    start_ray()

    first, second = tokens
    assert len(first) == 64, "32 random bytes in hexadecimal digits"
    assert second == first, "Ray reads the token once per process"
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_a_token_of_the_user_is_kept(init: Init, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "own")
    tokens: list[str] = []
    init(lambda **options: tokens.append(os.environ["RAY_AUTH_TOKEN"]))

    start_ray()

    assert tokens == ["own"]
    assert os.environ["RAY_AUTH_TOKEN"] == "own"


def test_a_process_that_has_read_the_default_token_starts_ray_with_it_and_makes_its_file_private(
    init: Init, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "auth_token"
    file.touch(mode=0o644)
    monkeypatch.setattr(ray_cluster, "_TOKEN_FILE", file)
    had_token_in_memory: list[bool] = []  # by attempt

    def start(**options: object) -> None:
        has_token_in_memory = "RAY_AUTH_TOKEN" in os.environ
        had_token_in_memory.append(has_token_in_memory)
        if has_token_in_memory:
            raise RuntimeError("Failed to start GCS.")

    init(start)
    start_ray()

    assert had_token_in_memory == [True, True, False]
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_start_that_times_out_is_repeated_with_the_token_that_ray_has_read(
    init: Init, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "auth_token"
    file.touch()
    monkeypatch.setattr(ray_cluster, "_TOKEN_FILE", file)
    tokens: list[str | None] = []

    def start(**options: object) -> None:
        tokens.append(os.environ.get("RAY_AUTH_TOKEN"))
        if len(tokens) == 1:
            raise TimeoutError("Ray did not start within 30 s.")

    init(start)
    start_ray()

    first, second = tokens
    assert first is not None
    assert second == first


def test_each_slice_of_a_gpu_is_a_gpu_of_a_local_cluster(init: Init, monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[str, object] = {}
    init(lambda **options: started.update(options))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-11c2a9d4,MIG-52b7e0f3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    start_ray()

    assert started["num_gpus"] == 2
