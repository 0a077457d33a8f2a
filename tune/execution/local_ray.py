"""Start Ray on this machine, or join a cluster by address."""

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prometar.environment import num_cpus as own_cpus
from prometar.errors import UserError, WorkError, first_line

_ALWAYS = {
    # A stream ends its workers' work between two epochs. Ray would then stop them after a second.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A late call after `ray.shutdown`, such as closing a stream, would start another Ray that nobody ends.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_LOCAL = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # servers listen on 127.0.0.1 only, as on a Mac
    "RAY_prestart_worker_first_driver": "0",  # start workers on demand: each takes 80 MB and half a second
}
# Ray does not name a wrong token. The head listens, so this is the likely cause.
_TOKEN = " (if the cluster asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH)"
_started_here = False


def configure_ray(*, local: bool = True) -> None:
    """Set the environment variables that Ray reads. Call it before anything imports ray."""
    for name, value in (_ALWAYS | (_LOCAL if local else {})).items():
        os.environ.setdefault(name, value)


def start_ray(*, address: str | None = None, num_cpus: int | None = None) -> list[dict[str, float]]:
    """Start Ray on this machine, or join the cluster at `address`. Does nothing if Ray already runs.

    Returns the resources of each machine, e.g. [{"CPU": 2.0}]. A Ray started here listens on 127.0.0.1 only.

    Raises:
        UserError: `address` is not an address. WorkError: Ray does not start, or cannot be joined.
    """
    configure_ray(local=address is None)
    if address is not None:
        _require_server(address)
    import ray

    if ray.is_initialized() and (head_is_gone() or own_node_is_gone()):
        ray.shutdown()  # it died between two studies of a notebook
    if not ray.is_initialized():
        _start(address, num_cpus=num_cpus)
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _start(address: str | None, *, num_cpus: int | None) -> None:
    import ray

    global _started_here
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {"include_dashboard": False} | _own_resources(num_cpus)
        if not os.access(os.path.expanduser("~"), os.W_OK):  # where Ray would store a token
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    for attempts_left in (1, 0):
        try:
            with own_signal_handlers():
                ray.init(address=address or "local", **options)
            break
        except Exception as error:
            reason = first_line(error)
            if address is not None:
                hint = "" if "token" in reason else _TOKEN
                raise WorkError(f"Ray cannot be joined at {address}: {reason}{hint}") from None
            if not attempts_left:
                raise WorkError(f"Ray does not start: {reason}") from None
            ray.shutdown()  # on a busy machine, 30 s may be too short for its processes
    _started_here = address is None


def _own_resources(num_cpus: int | None) -> dict[str, int]:
    """Resources for `ray.init` that Ray would overestimate."""
    import torch

    found = {} if torch.cuda.is_available() else {"num_gpus": 0}  # Ray asks the driver, not torch
    if num_cpus is None and own_cpus() < (os.cpu_count() or 1):  # a batch system shares the machine
        num_cpus = own_cpus()
    return found if num_cpus is None else {**found, "num_cpus": num_cpus}


@contextmanager
def own_signal_handlers() -> Iterator[None]:
    """Restore this process's handlers afterwards, and do not let Ray's processes ignore SIGINT.

    A background job of a shell ignores it, and its children inherit that. Ray cancels tasks with SIGINT.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupt, terminate = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    if interrupt is signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, interrupt)
        if callable(terminate):
            signal.signal(signal.SIGTERM, terminate)


def started_here() -> bool:
    """Return True if this process started the Ray that it uses."""
    return _started_here


def head_is_gone() -> bool:
    """Return True if the head of the Ray that this process uses does not listen any more."""
    import ray

    try:
        if ray.is_initialized():
            _connect(ray.get_runtime_context().gcs_address)
    except ConnectionRefusedError:
        return True
    except OSError:  # unknown: the network may be down
        pass
    return False


def own_node_is_gone() -> bool:
    """Return True if Ray's head considers this machine's node dead."""
    import ray

    if not ray.is_initialized():
        return False
    own = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == own and not node["Alive"] for node in ray.nodes())


def _connect(address: str) -> None:
    """Raises OSError if nothing listens at `address`."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _require_server(address: str) -> None:
    """Without this, Ray tries for ten minutes to reach a server that does not exist."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "")
        if address in {"", "auto", "local"}:
            return
    host, _, port = address.rpartition(":")
    if "://" in address:
        raise UserError(
            f"--address {address}: Ray client addresses are not supported. Start the command on a machine of "
            "the cluster (--address auto), or submit it (clusters/submit.py)."
        )
    if not (host and port.isdigit()):
        raise UserError(f"--address {address}: expected auto, or HOST:PORT of the cluster's head.")
    try:
        _connect(address)
    except (OSError, OverflowError) as error:
        raise WorkError(f"Ray cannot be joined at {address}: {error}") from None
