"""A Ray that this project starts: it listens on this machine alone, and its tasks can be cancelled."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT, without_ray

LISTEN = "0A"
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}

SHOW = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a script's background
signal.signal(signal.SIGTERM, lambda *_: print("terminate"))
from tests.cluster.test_local_ray import listening
from tune.execution.local_ray import start_ray
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # as a batch system allots it
(node,) = start_ray()
print(node["CPU"])
import ray
print(ray.get(ray.remote(lambda: signal.getsignal(signal.SIGINT) is signal.default_int_handler).remote()))
print(*listening())
signal.raise_signal(signal.SIGINT)
signal.raise_signal(signal.SIGTERM)
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


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's /proc")
def test_a_local_ray_is_this_machine_s_alone(tmp_path: Path) -> None:
    env = without_ray() | {"PYTHONPATH": str(ROOT), "HOME": "/proc/none"}  # Ray cannot store its token there
    done = subprocess.run(
        [sys.executable, "-c", SHOW], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    cpus, interruptible, addresses, terminate = done.stdout.splitlines()
    assert cpus == "1.0", "the CPUs of a batch job"
    assert interruptible == "True"
    assert len(addresses.split()) > 3, "Ray has servers"
    assert set(addresses.split()) <= LOOPBACK
    assert terminate == "terminate"
