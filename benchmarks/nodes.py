"""A Ray cluster of many nodes on one machine, each a session of processes that is killed as a whole."""

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

START_SECONDS = 300  # on a busy machine
LOOK_SECONDS = 2.0  # between two looks at the processes
MEMORY_EVERY = 10  # looks
STORE_BYTES = 80 * 2**20  # of a node's object store; Ray takes no less than 75 MiB
_TICK = os.sysconf("SC_CLK_TCK")


class Nodes:
    """A head without slots, and `num_nodes` nodes of `slots` CPUs; as a context it leaves no process behind.

    Args:
        env: Variables of every process on the nodes.
    """

    def __init__(self, num_nodes: int, slots: int, env: Mapping[str, str]) -> None:
        self._slots, self._numbers = slots, itertools.count(1)
        self._folder = Path(tempfile.mkdtemp(prefix="pm", dir="/tmp"))  # a socket's path has 107 characters
        token = self._folder / "token"
        token.write_text(os.urandom(32).hex())
        token.chmod(0o600)
        here = {key: text for key, text in os.environ.items() if not key.startswith("RAY_")}
        self.env = {
            **here,
            **env,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_start_wait_time_s": str(START_SECONDS),
            "RAY_memory_monitor_refresh_ms": "0",  # it would see the whole machine on every node
        }
        self._port = _free_port()
        self.address = f"127.0.0.1:{self._port}"
        self.live: list[subprocess.Popen] = []
        self._gone: list[subprocess.Popen] = []
        self._log = self._folder / "0.log"  # of the node that has begun last
        self._num_nodes = num_nodes

    def __enter__(self) -> "Nodes":
        try:
            self._start_head()
            for _ in range(self._num_nodes):
                self.add()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in [*self.live, *self._gone, self._head]:
            kill_session(node.pid)
            node.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start_head(self) -> None:
        self._head = self._start(
            "--head", "--num-cpus=0", "--include-dashboard=false", "--node-ip-address=127.0.0.1",
            f"--port={self._port}", f"--ray-client-server-port={_free_port()}",
            f"--temp-dir={self._folder / 'r'}",
        )  # fmt: skip
        self._join(self._head)

    def add(self) -> None:
        """Start a node and wait until it has joined: two that start at once may take the same socket."""
        # An address of its own: a driver takes the first node of its own address for its home.
        number = next(self._numbers)
        address = f"127.0.{1 + number // 250}.{1 + number % 250}"
        node = self._start(
            f"--address={self.address}", f"--num-cpus={self._slots}", f"--node-ip-address={address}"
        )
        self.live.append(node)
        self._join(node)

    def _join(self, node: subprocess.Popen) -> None:
        end = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in (said := self._log.read_text()):
            if time.monotonic() > end or node.poll() is not None:
                raise SystemExit(f"a node does not start:\n{said[-2000:]}")
            time.sleep(0.1)

    def kill(self, node: subprocess.Popen) -> None:
        """End all of a node's processes at once, as a lost machine does."""
        self.live.remove(node)
        self._gone.append(node)
        kill_session(node.pid)

    def _start(self, *options: str) -> subprocess.Popen:
        self._log = self._folder / f"{next(self._numbers)}.log"
        with self._log.open("w") as log:
            return subprocess.Popen(
                [
                    str(Path(sys.executable).with_name("ray")), "start", "--block", *options,
                    "--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0",
                    "--include-log-monitor=false", "--num-gpus=0", f"--object-store-memory={STORE_BYTES}",
                ],
                env=self.env, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def sessions(self) -> set[int]:
        return {node.pid for node in [*self.live, self._head]}


def kill_session(leader: int) -> None:
    """Kill a session's processes until none is left."""
    while pids := [pid for pid, stat in _stats() if stat.session == leader and stat.state != "Z"]:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


class _Stat(NamedTuple):
    state: str
    parent: int
    session: int
    cpu: float


def _stats() -> list[tuple[int, _Stat]]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            words = path.read_text().rsplit(")", 1)[1].split()
            cpu = (int(words[11]) + int(words[12])) / _TICK
            found.append((int(path.parent.name), _Stat(words[0], int(words[1]), int(words[3]), cpu)))
    return found


class Meter(threading.Thread):
    """Follows the CPU seconds and the memory of a cluster's processes and of this process's children.

    Memory is the proportional set size: what processes share is divided among them.
    """

    def __init__(self, nodes: Nodes) -> None:
        super().__init__(daemon=True)
        self._nodes = nodes
        self._over = threading.Event()
        self._cpu: dict[int, tuple[str, float]] = {}
        self.seen: list[tuple[float, dict[str, float]]] = []  # CPU seconds by kind, at a time
        self.mib: dict[str, float] = {}  # at most, by kind
        self.counts: Counter[str] = Counter()  # processes by kind, when that was

    def run(self) -> None:
        for turn in itertools.count():
            self._look(turn % MEMORY_EVERY == MEMORY_EVERY - 1)
            if self._over.wait(LOOK_SECONDS):
                return

    def stop(self) -> None:
        self._over.set()
        self.join()

    def _look(self, memory: bool) -> None:
        sessions, mib, counts = self._nodes.sessions(), defaultdict[str, float](float), Counter[str]()
        for pid, stat in _stats():
            if stat.session not in sessions and stat.parent != os.getpid():
                continue
            with suppress(OSError):
                kind = _kind(Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace"))
                self._cpu[pid] = kind, stat.cpu
                if memory:
                    mib[kind] += _pss_mib(pid)
                    counts[kind] += 1
        totals = defaultdict[str, float](float)
        for kind, cpu in self._cpu.values():
            totals[kind] += cpu
        totals["machine"] = _machine_cpu()
        self.seen.append((time.time(), totals))
        if sum(mib.values()) > sum(self.mib.values()):
            self.mib, self.counts = mib, counts

    def cores(self, begin: float, end: float) -> dict[str, float]:
        """CPU seconds a second, by kind, in a stretch of time; `others` is what else ran on the machine."""
        first = min(self.seen, key=lambda seen: abs(seen[0] - begin))
        last = min(self.seen, key=lambda seen: abs(seen[0] - end))
        took = max(last[0] - first[0], 1e-9)
        used = {kind: (cpu - first[1].get(kind, 0.0)) / took for kind, cpu in last[1].items()}
        machine = used.pop("machine")
        return {**used, "others": machine - sum(used.values())}


def _kind(command: str) -> str:
    """Workers are renamed after what they run: they are what nothing else is."""
    if "--side" in command:
        return "driver"
    if "gcs_server" in command:
        return "gcs"
    if "/raylet/raylet" in command:
        return "raylets"
    served = ("Agent", "agent", "monitor", "client.server", "bin/ray")
    return "agents" if any(name in command for name in served) else "workers"


def _pss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _machine_cpu() -> float:
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq = map(int, words[:7])
    return (user + nice + system + irq + softirq) / _TICK


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
