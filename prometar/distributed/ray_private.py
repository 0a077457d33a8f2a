"""Ray's private names that starting it rests on: another version may lack them, or mean other things."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prometar.replaced import replaced

HELPERS = ("start_monitor", "start_api_server", "start_log_monitor")
MEMORY = "_memory"  # an option of `ray.init`: bytes for tasks and actors


def started_here() -> bool:
    """Whether this process has started the Ray that it uses, its head too."""
    from ray._private.worker import global_worker

    return global_worker.node is not None and bool(global_worker.node.head)


def taken_by_itself() -> tuple[int, int]:
    """What Ray takes where it is told nothing: CPUs of the machine or container, and bytes that are free."""
    from ray._private.utils import estimate_available_memory, get_num_cpus

    return int(get_num_cpus(override_docker_cpu_warning=True)), estimate_available_memory()


def imports_as_here() -> dict[str, Any]:
    """Options of `ray.init` with which workers look for modules where this process does.

    By itself Ray has them look into the current folder first, where a package of the user's may be called
    `tune` as ours is; a client's job leaves it out. A submitted job's is the folder that came with it.
    """
    from ray.job_config import JobConfig

    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if submitted or os.getcwd() in map(os.path.abspath, sys.path):
        return {}
    return {"job_config": JobConfig(_client_job=True)}


@contextmanager
def without_helpers() -> Iterator[None]:
    """Start no process of Ray's that helps nobody where one machine is used for one command.

    They add machines, serve a dashboard without a page, and send workers' logs to a driver that shows none:
    each a Python of its own, which takes a second to load and memory for as long as it runs.
    """
    from ray._private.node import Node

    with replaced(Node, **dict.fromkeys(HELPERS, lambda node, **options: None)):
        yield


@contextmanager
def own_answer_to_sigterm() -> Iterator[None]:
    """Keep a process's own answer to SIGTERM, where it has one: Ray's is a dump and an abort.

    But for the moment in which Ray's core is made, whose own takes every thread.
    Of the main thread alone: no other may say what happens at a signal.
    """
    from ray._private import utils

    own = signal.getsignal(signal.SIGTERM)
    if own in (signal.SIG_DFL, None) or threading.current_thread() is not threading.main_thread():
        yield
        return
    with replaced(utils, set_sigterm_handler=lambda handler: None):
        yield
    signal.signal(signal.SIGTERM, own)  # past Python, Ray's own has taken its place


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
