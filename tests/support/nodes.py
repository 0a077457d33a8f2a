"""A Ray cluster of several nodes on this machine whose nodes can be killed with -9.

It lives in a process of its own, `python -m tests.support.nodes`, so that it and a Ray of the process that
asked for it know nothing of each other; that takes a command a line, and answers each with a line of JSON.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.processes import ROOT, session, without_ray

MIB = 2**20


class Cluster:
    """A head, and nodes that are known by their raylet's process id.

    Args:
        cpus: Of each node to begin with.
        head: The head's CPUs. If it has some, it is the first node.

    Attributes:
        address: For `--address`.
        nodes: Those that live.
        env: The environment of a driver that may join.
        leader: Of the session that all its processes belong to.
    """

    def __init__(self, *cpus: int, head: int = 0) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="pm-", dir="/tmp"))  # a socket's path must be short
        token = self._folder / "token"
        token.touch(mode=0o600)
        token.write_text(os.urandom(32).hex())
        self.env = {
            **without_ray(),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_prestart_worker_first_driver": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every server on 127.0.0.1, as Ray does on a Mac
        }
        with (self._folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.nodes"],
                cwd=ROOT,
                env={**self.env, "RAY_TMPDIR": str(self._folder)},  # else `ray.init()` elsewhere would join
                start_new_session=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.leader = self._process.pid
        self.nodes: list[int] = []
        try:
            self.address, raylet = self._ask("head", head)
            self.nodes += [raylet] * bool(head)
            for each in cpus:
                self.add(each)
        except BaseException:
            self.close()
            raise

    def _ask(self, *words: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(*words, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, f"the cluster has died: {(self._folder / 'log').read_text()}"
        return json.loads(answer)

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process, and see that none is left."""
        self._process.kill()
        end = time.monotonic() + 30
        while left := session(self._process.pid):
            assert time.monotonic() < end, f"still running: {left}"
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.poll()  # else it stays in the list as a zombie
            time.sleep(0.05)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, cpus: int, **variables: str) -> int:
        """A further node; returns its raylet's process id, once the cluster knows it.

        Args:
            variables: Environment variables of the node's workers.
        """
        self.nodes.append(int(self._ask("add", cpus, *(f"{key}={text}" for key, text in variables.items()))))
        return self.nodes[-1]

    def kill(self, node: int) -> None:
        """kill -9 of a node: its raylet, and all that it has started."""
        self._ask("kill", node)
        self.nodes.remove(node)

    def kill_head(self) -> None:
        """kill -9 of the head: the cluster's memory, and the raylet that a driver here is joined by."""
        self._ask("kill-head")

    def node_of(self, pid: int) -> int | None:
        """The node that a worker belongs to; None where it has ended, or is no worker of this cluster."""
        parent = _parent(pid)
        return parent if parent in self.nodes else None


def _parent(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return None


def _kill(pids: Sequence[int]) -> None:
    """Kill processes and their children, all before any of them can tell another."""
    parents = {int(path.name): _parent(int(path.name)) for path in Path("/proc").glob("[0-9]*")}
    for pid in (*pids, *(pid for pid, parent in parents.items() if parent in pids)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def main() -> None:
    from ray.cluster_utils import Cluster as RayCluster

    cluster = RayCluster(shutdown_at_exit=False)
    nodes: dict[int, Any] = {}

    def pids_of(node: Any) -> list[int]:
        return [each.process.pid for processes in node.all_processes.values() for each in processes]

    def start(cpus: int, variables: dict[str, str]) -> Any:
        return cluster.add_node(
            num_cpus=cpus,
            node_ip_address="127.0.0.1",
            include_dashboard=False,
            object_store_memory=100 * MIB,
            env_vars=variables,
        )

    def add(cpus: int, *assignments: str) -> Any:
        variables = dict(each.split("=") for each in assignments)
        try:
            node = start(cpus, variables)
        except Exception as error:  # Ray gives a node 30 s, which a busy machine may take
            if "timed out during startup" not in str(error):
                raise
            node = start(cpus, variables)
        (raylet,) = node.all_processes["raylet"]
        nodes[raylet.process.pid] = node
        return raylet.process.pid

    def kill(node: Any) -> None:
        _kill(pids_of(node))
        cluster.remove_node(node, allow_graceful=False)  # which also waits for them

    for line in sys.stdin:
        command, *rest = line.split()
        answer: Any = None
        if command == "head":
            raylet = add(int(rest[0]))
            answer = cluster.address, raylet
        elif command == "add":
            answer = add(int(rest[0]), *rest[1:])
        elif command == "kill":
            kill(nodes.pop(int(rest[0])))
        elif command == "kill-head":
            kill(cluster.head_node)
        print(json.dumps(answer), flush=True)
    os.killpg(0, signal.SIGKILL)  # whoever asked has died without a word


if __name__ == "__main__":
    main()
