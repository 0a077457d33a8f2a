"""Ray's private names that starting it rests on: another version may lack them, or mean other things."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prometar.distributed import no_agent

HELPERS = ("start_monitor", "start_api_server", "start_log_monitor")
_AGENT = "--dashboard_agent_command"
MEMORY = "_memory"  # an option of `ray.init`: bytes for tasks and actors


@contextmanager
def replaced(owner: Any, **parts: Any) -> Iterator[None]:
    """Meanwhile, a module or a class has these parts instead of its own."""
    before = {name: getattr(owner, name) for name in parts}
    for name, part in parts.items():
        setattr(owner, name, part)
    try:
        yield
    finally:
        for name, part in before.items():
            setattr(owner, name, part)


def started_here() -> bool:
    """Whether this process has started the Ray that it uses, its head too."""
    from ray._private.worker import global_worker

    return global_worker.node is not None and bool(global_worker.node.head)


def taken_by_itself() -> tuple[int, int]:
    """What Ray takes where it is told nothing: CPUs of the machine or container, and bytes that are free."""
    from ray._private.utils import estimate_available_memory, get_num_cpus

    return int(get_num_cpus(override_docker_cpu_warning=True)), estimate_available_memory()


@contextmanager
def without_helpers() -> Iterator[None]:
    """Start no process of Ray's that helps nobody where one machine is used for one command.

    They add machines, serve a dashboard without a page, measure for it, and send workers' logs to a driver
    that shows none: each a Python of its own, which takes a second or two to load and memory while it runs.
    """
    from ray._private import services, utils
    from ray._private.node import Node

    start = services.start_ray_process

    def start_without_agent(command: list[str], kind: str, **options: Any) -> Any:
        return start(_without_agent(command), kind, **options)

    with (
        replaced(Node, **dict.fromkeys(HELPERS, lambda node, **options: None)),
        replaced(services, start_ray_process=start_without_agent),
        replaced(utils, get_dashboard_dependency_error=lambda: None),  # imports all of them to know
    ):
        yield


def _without_agent(command: list[str]) -> list[str]:
    """A raylet's command with `no_agent` for Ray's dashboard agent; any other as it is."""
    given = dict(word.split("=", 1) for word in command if word.startswith("--") and "=" in word)
    if _AGENT not in given:
        return command
    stand_in = [sys.executable, "-I", "-S", no_agent.__file__, given["--session_dir"], given["--node_id"]]
    told = f"{_AGENT}={subprocess.list2cmdline(stand_in)}"
    return [told if word.startswith(f"{_AGENT}=") else word for word in command]


@contextmanager
def ended_where_it_fails() -> Iterator[None]:
    """End what a Ray that is too slow has started: it would run on, beside the one that is started next."""
    from ray._private.node import Node

    start: Any = Node.__init__

    def begin(node: Node, *given: Any, **options: Any) -> None:
        try:
            start(node, *given, **options)
        except BaseException:
            if getattr(node, "all_processes", None):
                node.kill_all_processes(check_alive=False, allow_graceful=True)
            raise

    with replaced(Node, __init__=begin):
        yield
