"""A Ray that this project starts: it listens on this machine alone, and its tasks can be cancelled."""

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from prometar.distributed.local_ray import start_ray
from prometar.errors import WorkError
from tests.support.processes import ROOT, without_ray

LISTEN = "0A"
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}

SHOW = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a script's background
signal.signal(signal.SIGTERM, lambda *_: print("told to end"))
from tests.cluster.test_local_ray import listening
from prometar.distributed import allotment
from prometar.distributed.local_ray import start_ray
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # as a batch system allots it
allotment.memory_limit = lambda: 3 * 2**30
(node,) = start_ray()
print(node["CPU"], node["memory"] + node["object_store_memory"])
import ray
print(ray.get(ray.remote(lambda: signal.getsignal(signal.SIGINT) is signal.default_int_handler).remote()))
print(*listening())
signal.raise_signal(signal.SIGINT)
signal.raise_signal(signal.SIGTERM)
print("goes on")
"""

THREADS = """
import threading, time
from prometar.distributed.local_ray import start_ray
threads = [threading.Thread(target=start_ray, kwargs={"num_cpus": 1}) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
import psutil, ray
print(ray.get(ray.remote(lambda: "answers").remote(), timeout=60))
head = next(each for each in psutil.Process().children() if each.name() == "gcs_server")
head.kill()
head.wait(30)
start_ray(num_cpus=1)
print(ray.get(ray.remote(lambda: "answers again").remote(), timeout=60))
"""

SLOW = """
from prometar.distributed.local_ray import configure_ray, start_ray
configure_ray()
import psutil, ray, tune
from ray._private import services
nodes, get_node = [], services.get_node
def too_slow_once(gcs_address, node_id):
    nodes.append(node_id)
    if len(nodes) == 1:
        raise Exception("The current node timed out during startup.")
    return get_node(gcs_address, node_id)
services.get_node = too_slow_once
start_ray(num_cpus=2)
left = [each.name() for each in psutil.Process().children() if each.status() != psutil.STATUS_ZOMBIE]
print(len(set(nodes)), *sorted(left))
class Actor:
    def file(self): return __import__("tune").__file__
actor = ray.remote(Actor).remote()
print(ray.get(actor.file.remote()) == tune.__file__)
def is_worker(line):
    own = any(part.endswith("default_worker.py") for part in line)
    return own or line and line[0].startswith("ray::") and "Agent" not in line[0]
print(sum(bool(is_worker(each.cmdline())) for each in psutil.Process().children(recursive=True)))
"""


def family(root: int) -> set[int]:
    """A process and all its descendants."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue  # it has ended
    members = {root}
    while grown := {pid for pid, parent in parents.items() if parent in members} - members:
        members |= grown
    return members


def listening() -> list[str]:
    """Local addresses (hex, as in /proc/net/tcp) on which this process and its descendants listen."""
    sockets = set()
    for pid in family(os.getpid()):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                sockets.add(str(descriptor.readlink()))
            except OSError:
                continue
    rows = [
        line.split() for f in ("tcp", "tcp6") for line in Path("/proc/net", f).read_text().splitlines()[1:]
    ]
    return [row[1].split(":")[0] for row in rows if row[3] == LISTEN and f"socket:[{row[9]}]" in sockets]


def lines(folder: Path, program: str, **more: str) -> list[str]:
    """What a program prints that is started where a package is called as one of ours."""
    script, here = folder / "program.py", folder / "here"
    script.write_text(program)
    (here / "tune").mkdir(parents=True)
    (here / "tune" / "__init__.py").touch()
    env = without_ray() | {"PYTHONPATH": str(ROOT), **more}
    done = subprocess.run(
        [sys.executable, script], cwd=here, env=env, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return lines(tmp_path_factory.mktemp("shown"), SHOW)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return lines(tmp_path_factory.mktemp("slow"), SLOW)


def test_ray_outlives_the_thread_that_started_it_and_is_started_anew_where_it_has_died(
    tmp_path: Path,
) -> None:
    no_home = "/proc/none"  # nor is there one where Ray could keep its token
    assert lines(tmp_path, THREADS, HOME=no_home) == ["answers", "answers again"]


def test_of_a_ray_that_was_too_slow_nothing_runs_beside_the_next(slow: list[str]) -> None:
    assert slow[0] == "2 gcs_server raylet"


def test_a_package_in_the_current_folder_does_not_hide_ours_from_workers(slow: list[str]) -> None:
    assert slow[1] == "True"


def test_no_worker_is_started_that_nobody_needs(slow: list[str]) -> None:
    assert slow[2] == "1", "Ray by itself starts one for each CPU"


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's /proc")
def test_nothing_listens_beyond_this_machine(shown: list[str]) -> None:
    addresses = shown[2].split()
    assert len(addresses) > 3, "Ray has servers"
    assert set(addresses) <= LOOPBACK


def test_tasks_can_be_cancelled_where_interrupts_are_ignored(shown: list[str]) -> None:
    assert (shown[1], shown[-1]) == ("True", "goes on")


def test_a_process_s_own_answer_to_sigterm_stays(shown: list[str]) -> None:
    assert shown[-2] == "told to end"


def test_a_job_s_share_of_a_machine_is_all_that_ray_gives_out(shown: list[str]) -> None:
    assert shown[0] == f"1.0 {float(3 * 2**30)}"


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("Exception", "The current node timed out during startup. This could happen because ..."),
        ("RaySystemError", "Failed to connect to GCS"),
        ("Exception", "Timed out waiting for file /tmp/ray/session/gcs_server_port_1"),
    ],
)
def test_a_node_that_starts_slowly_is_given_a_second_time(
    monkeypatch: pytest.MonkeyPatch, times: int, kind: str, text: str
) -> None:
    import ray

    error = getattr(ray.exceptions, kind, Exception)(text)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", Mock())
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
    monkeypatch.setattr(ray, "init", Mock(side_effect=[error] * times + [None]))
    if times == 1:
        assert start_ray() == [{"CPU": 2.0}]
    else:
        with pytest.raises(WorkError, match="Ray has not started, twice: this machine is too busy"):
            start_ray()
    assert ray.shutdown.call_count == times


def test_no_cluster_at_an_address_is_one_line() -> None:
    with pytest.raises(WorkError, match=r"Ray cannot be joined at 127\.0\.0\.1:1: .*refused"):
        start_ray(address="127.0.0.1:1")
