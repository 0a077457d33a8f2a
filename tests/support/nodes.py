"""A Ray cluster of several nodes on this machine. Its nodes can be killed with SIGKILL.

The separate process `python -m tests.support.nodes` starts and kills the nodes, so that the cluster is
independent of a Ray in the test's process. It reads a command per line and answers each with a line of JSON.
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

from tests.support.processes import ROOT, parent_of, parents, session, without_ray

MIB = 2**20


class Cluster:
    """A head and further nodes. The process id of a node's raylet identifies the node.

    Args:
        cpus: Number of CPUs of each node at the start.
        head: Number of CPUs of the head. If it is not 0, the head counts as the first node.

    Attributes:
        address: Address of the cluster, for `--address`.
        nodes: Running nodes.
        env: Environment of a driver that may join the cluster.
        leader: Process id of the leader of the session to which all processes of the cluster belong.
    """

    def __init__(self, *cpus: int, head: int = 0) -> None:
        # In /tmp, because the path of a socket must be short.
        self._folder = Path(tempfile.mkdtemp(prefix="pm-", dir="/tmp"))
        token = self._folder / "token"
        token.touch(mode=0o600)
        token.write_text(os.urandom(32).hex())
        self.env = {
            **without_ray(),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_prestart_worker_first_driver": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # all servers listen on 127.0.0.1, as on a Mac
        }
        with (self._folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.nodes"],
                cwd=ROOT,
                # A separate folder, so that `ray.init()` in other processes does not find this cluster.
                env={**self.env, "RAY_TMPDIR": str(self._folder)},
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
            if head:
                self.nodes.append(raylet)
            for num_cpus in cpus:
                self.add(num_cpus)
        except BaseException:
            self.close()
            raise

    def _ask(self, *words: object) -> Any:
        """Send a command to the cluster's process. Return its answer."""
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
        """Kill all processes of the cluster.

        Raises:
            AssertionError: A process still runs after 30 s.
        """
        self._process.kill()
        end = time.monotonic() + 30
        while left := session(self._process.pid):
            assert time.monotonic() < end, f"still running: {left}"
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.poll()  # otherwise it stays in the session as a zombie
            time.sleep(0.05)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, cpus: int, **variables: str) -> int:
        """Add a node. Return the process id of its raylet when the node has joined the cluster.

        Args:
            cpus: Number of CPUs.
            variables: Environment variables of the node's workers.
        """
        assignments = [f"{name}={text}" for name, text in variables.items()]
        node = int(self._ask("add", cpus, *assignments))
        self.nodes.append(node)
        return node

    def kill(self, node: int) -> None:
        """Kill the raylet of a node and all processes that it has started, with SIGKILL."""
        self._ask("kill", node)
        self.nodes.remove(node)

    def kill_head(self) -> None:
        """Kill the head with SIGKILL: the state of the cluster, and the raylet that drivers connect to."""
        self._ask("kill-head")

    def node_of(self, pid: int) -> int | None:
        """Return the node of a worker, or None if the worker has ended or belongs to another cluster."""
        parent = parent_of(pid)
        return parent if parent in self.nodes else None


def _kill(pids: Sequence[int]) -> None:
    """Kill processes and their children.

    The children are found first, so that all are killed before one can react to the end of another.
    """
    children = [pid for pid, parent in parents().items() if parent in pids]
    for pid in (*pids, *children):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def main() -> None:
    """Run a cluster by the commands on standard input, until its end."""
    from ray.cluster_utils import Cluster as RayCluster

    cluster = RayCluster(shutdown_at_exit=False)
    nodes: dict[int, Any] = {}

    def pids_of(node: Any) -> list[int]:
        """Return the ids of the processes that Ray has started for a node."""
        pids = []
        for processes in node.all_processes.values():
            pids += [each.process.pid for each in processes]
        return pids

    def start(cpus: int, variables: dict[str, str]) -> Any:
        """Start a node with these environment variables. Return Ray's object of it."""
        return cluster.add_node(
            num_cpus=cpus,
            node_ip_address="127.0.0.1",
            include_dashboard=False,
            object_store_memory=100 * MIB,
            env_vars=variables,
        )

    def add(cpus: int, *assignments: str) -> int:
        """Start a node, a second time if needed. Return the process id of its raylet."""
        variables = dict(assignment.split("=") for assignment in assignments)
        try:
            node = start(cpus, variables)
        except Exception as error:  # Ray waits 30 s for a node, which is too short on a busy machine
            if "timed out during startup" not in str(error):
                raise
            node = start(cpus, variables)
        (raylet,) = node.all_processes["raylet"]
        nodes[raylet.process.pid] = node
        return raylet.process.pid

    def kill(node: Any) -> None:
        """Kill all processes of a node."""
        _kill(pids_of(node))
        cluster.remove_node(node, allow_graceful=False)  # it also waits for the processes

    for line in sys.stdin:
        command, *rest = line.split()
        answer: Any = None
        if command == "head":
            raylet = add(int(rest[0]))
            answer = (cluster.address, raylet)
        elif command == "add":
            answer = add(int(rest[0]), *rest[1:])
        elif command == "kill":
            kill(nodes.pop(int(rest[0])))
        elif command == "kill-head":
            kill(cluster.head_node)
        print(json.dumps(answer), flush=True)
    # The input has ended because the process that started the cluster has died.
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
