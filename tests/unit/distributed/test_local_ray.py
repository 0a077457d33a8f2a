"""What Ray needs of the machine and of the environment, before any is started."""

import os
import pwd
import resource
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from prometar.clip.openclip import has_cached
from prometar.distributed import local_ray
from prometar.distributed.local_ray import configure_ray, start_ray
from prometar.environment import num_cpus
from prometar.errors import UserError, WorkError


def test_too_few_open_files_are_said_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(**_: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 64))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: None)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(local_ray, "_init", never)
    with pytest.raises(WorkError, match="64 files can be open here, and Ray needs 512: raise `ulimit -n`"):
        start_ray()


@pytest.mark.parametrize(
    ("now", "then"),
    [((64, 4096), (4096, 4096)), ((1024, resource.RLIM_INFINITY), (65_536, resource.RLIM_INFINITY))],
)
def test_the_limit_is_raised_as_far_as_it_may(
    now: tuple[int, int], then: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: now)
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: found.append(limits))
    local_ray._require_open_files()
    assert found == [then]


def test_a_mac_has_other_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """No set of CPUs, fewer open files than it tells, and a long TMPDIR that Ray does not take."""

    def too_many(which: int, limits: tuple[int, int]) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", too_many)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("TMPDIR", f"/var/folders/{'long' * 20}/T/")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    local_ray._require_open_files()
    local_ray._require_room()
    assert num_cpus() == os.cpu_count()


def test_no_room_for_rays_files_is_said_before_ray_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(local_ray, "_init", lambda **options: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=3 * 2**20))
    with pytest.raises(WorkError, match="Ray keeps its files in /tmp, where 3 MiB are free"):
        start_ray()


def test_a_folder_too_deep_for_rays_sockets_is_said_before_ray_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("job" * 20)))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(local_ray, "_init", lambda **options: None)
    with pytest.raises(WorkError, match="too long a path for its sockets: set RAY_TMPDIR to a shorter one"):
        start_ray()


@pytest.mark.parametrize("name", ["jo's", "a\\b", "josé"])
def test_a_folder_whose_name_ray_cannot_take_is_said_before_ray_starts(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", f"/tmp/{name}")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(local_ray, "_init", lambda **options: None)
    with pytest.raises(
        WorkError, match="and cannot with that name: set RAY_TMPDIR to a plainer one, as /tmp"
    ):
        start_ray()


def test_a_folder_of_ray_that_is_somebody_elses_is_said_before_ray_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "ray").mkdir()
    monkeypatch.setattr(local_ray, "_LONGEST_SOCKET", 1000)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(local_ray, "_init", lambda **options: None)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "ray")
    with pytest.raises(WorkError, match="ray cannot be written: set RAY_TMPDIR to another folder"):
        start_ray()


def test_warnings_that_end_rays_own_processes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "error::DeprecationWarning")
    monkeypatch.setattr("ray.shutdown", lambda: None)

    def fail(**_: object) -> None:
        raise RuntimeError("The current node timed out during startup.")

    monkeypatch.setattr("ray.init", fail)
    with pytest.raises(WorkError, match="not started, twice: unset PYTHONWARNINGS=error::DeprecationWarning"):
        local_ray._init(local_ray.LOCAL)


def test_a_call_after_rays_end_starts_no_other_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ENABLE_AUTO_CONNECT", raising=False)
    configure_ray()
    assert os.environ["RAY_ENABLE_AUTO_CONNECT"] == "0"
    monkeypatch.delenv("RAY_ENABLE_AUTO_CONNECT")


def test_too_few_tasks_are_said_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(**_: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(local_ray, "task_limit", lambda: 100)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(local_ray, "_init", never)
    with pytest.raises(WorkError, match=r"^100 processes and threads can run here, and Ray needs 192: raise"):
        start_ray()


def test_a_user_without_a_home_has_the_root_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user whom /etc/passwd does not know; Ray Tune asks for a home as it is imported."""

    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(RuntimeError):
        Path.home()
    assert not has_cached("ViT-B-32", "openai")
    configure_ray()
    assert Path.home() == Path("/")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("ray://head:10001", "a study is no client of Ray's"),
        ("head", "it is auto, or HOST:PORT"),
        ("local", "it is auto"),
    ],
)
def test_addresses_that_no_study_can_join(address: str, says: str) -> None:
    with pytest.raises(UserError, match=f"--address {address}: {says}"):
        start_ray(address=address)


def test_an_address_of_six_groups_is_knocked_at_without_its_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    knocked = []

    def refuse(where: tuple[str, int], timeout: float) -> None:
        knocked.append(where)
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr("socket.create_connection", refuse)
    with pytest.raises(WorkError, match=r"cannot be joined at \[::1\]:6379: refused"):
        start_ray(address="[::1]:6379")
    assert knocked == [("::1", 6379)]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            RuntimeError(
                "Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.11.7\n"
            ),
            "Version mismatch: The cluster was started with: Ray: 2.59.0 Python: 3.11.7; both sides must "
            "have the same versions",
        ),
        (ConnectionError("invalid token. Then much more"), "invalid token (where it asks for a token: "),
        (
            ConnectionError("Failed to connect to Ray cluster at h:1"),
            "Failed to connect to Ray cluster at h:1 (where",
        ),
        (ConnectionError("nobody there. Then much more"), "nobody there"),
        (ConnectionError(), "ConnectionError"),
    ],
)
def test_why_a_cluster_cannot_be_joined_is_one_line(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise error

    monkeypatch.setattr("ray.init", refuse)
    with pytest.raises(WorkError) as raised:
        local_ray._init("auto")
    assert str(raised.value).startswith(f"Ray cannot be joined at auto: {says}")
    assert "token" in str(raised.value) or "token" not in says


def test_python_without_docstrings_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "flags", SimpleNamespace(optimize=2))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(WorkError, match="Ray does not start with PYTHONOPTIMIZE=2: unset it"):
        start_ray()


@pytest.mark.parametrize(("own", "gone"), [("a", False), ("b", True), ("c", False)])
def test_whether_the_own_part_of_ray_has_died(own: str, gone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"NodeID": "a", "Alive": True}, {"NodeID": "b", "Alive": False}]
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.nodes", lambda: nodes)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: own))
    assert local_ray.own_node_is_gone() is gone
