"""Starting and joining Ray: options, addresses and errors of one line."""

import os
import signal
import socket
from collections.abc import Callable

import pytest
import ray

from prometar.distributed import gpus, local_ray
from prometar.distributed.gpus import only_given_gpus, require_given_gpus
from prometar.distributed.local_ray import configure_ray, own_node_is_gone, start_ray
from prometar.errors import StorageError, UserError, WorkError


@pytest.fixture
def init(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    """Replaces `ray.init` in a process where Ray does not run."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "nodes", list)
    return lambda start: monkeypatch.setattr(ray, "init", start)


def test_a_batch_job_gets_its_own_cpus_only(
    init: Callable[[Callable[..., None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: dict[str, object] = {}
    init(lambda **options: started.update(options))
    monkeypatch.setattr(local_ray, "own_cpus", lambda: 3)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    start_ray()
    assert (started["num_cpus"], started["num_gpus"], started["address"]) == (3, 0, "local")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    started.clear()
    start_ray()
    assert "num_cpus" not in started


def test_signal_handlers_are_those_from_before(init: Callable[[Callable[..., None]], None]) -> None:
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


def test_a_user_without_a_home_gets_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.delenv("HOME")
    configure_ray()
    assert os.environ["HOME"] == "/"


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("ray://head:10001", "Ray client addresses are not supported"),
        ("head", "expected auto, or HOST:PORT"),
        ("head:port", "expected auto, or HOST:PORT"),
    ],
)
def test_addresses_that_cannot_be_joined(address: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        start_ray(address=address)


def test_an_address_without_a_server_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(WorkError, match=f"^Ray cannot be joined at {address}: .*refused$"):
        start_ray(address=address)


def test_an_error_of_ray_is_one_line(init: Callable[[Callable[..., None]], None]) -> None:
    attempts = []

    def start(**options: object) -> None:
        attempts.append(options)
        raise RuntimeError("Version mismatch: Ray 2.60 and 2.61.\nMore lines.")

    init(start)
    with pytest.raises(WorkError, match=r"^Ray does not start: Version mismatch: Ray 2\.60 and 2\.61\.$"):
        start_ray()
    assert len(attempts) == 2


@pytest.mark.parametrize(("own", "gone"), [("a", False), ("b", True)])
def test_a_dead_node_of_this_machine(own: str, gone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Context:
        def get_node_id(self) -> str:
            return own

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", Context)
    monkeypatch.setattr(
        ray, "nodes", lambda: [{"NodeID": "a", "Alive": True}, {"NodeID": "b", "Alive": False}]
    )
    assert own_node_is_gone() is gone


def test_a_worker_uses_the_gpus_that_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr("prometar.device.why_no_gpu", lambda: "the driver is too old")
    monkeypatch.setattr(gpus.socket, "gethostname", lambda: "node3")
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [0])
    only_given_gpus()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    with pytest.raises(StorageError, match=r"node3: the driver is too old.*--gpus-per-run 0"):
        require_given_gpus("run")
    monkeypatch.setattr(ray, "get_gpu_ids", list)
    only_given_gpus()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    require_given_gpus("run")
