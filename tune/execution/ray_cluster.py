"""Ray cluster of a study: a local one that this process starts, or an existing one."""

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometar.environment import num_cpus as usable_cpus
from prometar.errors import UserError, WorkError, first_line

_ENVIRONMENT = {
    # Do not stop workers (e.g. those of data streams) that are idle between epochs. Ray's default is 1 s.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Otherwise, a Ray call after `ray.shutdown`, e.g. to close a stream, starts a new local cluster.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # The dispatcher says why a study stops. Ray would also print the tracebacks of other attempts that failed
    # at the same time.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # so that Tune uses the progress reporter of `RunConfig`
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # worker.py, not Ray, hides GPUs
}
_LOCAL_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # listen on 127.0.0.1 only, on Linux too
    "RAY_prestart_worker_first_driver": "0",  # a prestarted worker takes 80 MB and 0.5 s, even if unused
}
# If the head accepts connections but `ray.init` fails, a token may be missing. Ray's error may not say so.
_TOKEN_HINT = " If the cluster requires a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH."
TOKEN = secrets.token_hex(32)
"""Token of the clusters that this process starts."""
_TOKEN_FILE = Path.home() / ".ray" / "auth_token"  # where Ray stores a token by default
_owns_cluster = False

_TokenContext = Callable[[], AbstractContextManager[None]]
"""Function that returns a context in which Ray finds the token of the cluster."""


@dataclass(frozen=True)
class Machine:
    """A machine of a Ray cluster.

    Args:
        node_id: Ray's ID of the node. If Ray is restarted on a machine, the node has a new ID.
        name: Host name.
        resources: Resources, e.g. {"CPU": 2.0}.
    """

    node_id: str
    name: str
    resources: Mapping[str, float]

    def fits(self, bundles: Sequence[Mapping[str, float]]) -> bool:
        """Return True if the machine is large enough for these bundles together."""
        for kind in ("CPU", "GPU"):
            needed = sum(bundle.get(kind, 0.0) for bundle in bundles)
            available = self.resources.get(kind, 0.0)
            if needed > available + 1e-9:  # tolerates rounding errors
                return False
        return True


def configure_ray(*, local: bool = True) -> None:
    """Set defaults for Ray's environment variables. Call this before importing ray."""
    defaults = dict(_ENVIRONMENT)
    if local:
        defaults |= _LOCAL_ENVIRONMENT
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def start_ray(*, address: str | None = None, num_cpus: int | None = None) -> list[dict[str, float]]:
    """Start a local cluster or connect to an existing one, unless Ray is already initialized.

    Args:
        address: Address of an existing cluster: HOST:PORT of its head, or "auto". None: start a local one.
        num_cpus: Number of CPUs of a local cluster. None: those that this process can use.

    Returns:
        The resources of each machine, e.g. [{"CPU": 2.0}].

    Raises:
        UserError: `address` is invalid, or this process has already started a cluster of its own.
        WorkError: Ray cannot be started, or the connection fails.
    """
    configure_ray(local=address is None)
    if address is not None:
        _require_server(address)
    import ray

    if ray.is_initialized() and (head_is_dead() or local_node_is_dead()):
        ray.shutdown()  # e.g. if the cluster died between two studies in a notebook
    if not ray.is_initialized():
        _start(address, num_cpus=num_cpus)
    elif address is not None and owns_cluster():
        raise UserError("--address: this process has started its own Ray. Start a new process.")
    return [dict(machine.resources) for machine in alive_machines()]


def alive_machines() -> list[Machine]:
    """Return the machines of the cluster that are alive, or [] if Ray is not initialized."""
    import ray

    if not ray.is_initialized():
        return []
    return [
        Machine(node["NodeID"], node["NodeManagerHostname"], dict(node["Resources"]))
        for node in ray.nodes()
        if node["Alive"]
    ]


def _start(address: str | None, *, num_cpus: int | None) -> None:
    """Start a local cluster, or connect to the one at `address`. See `start_ray`."""
    import ray

    global _owns_cluster
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options["include_dashboard"] = False
        options |= _resource_options(num_cpus)
    token_contexts = _token_contexts(address)
    for attempt, token_context in enumerate(token_contexts, start=1):
        try:
            with preserve_signal_handlers(), token_context():
                ray.init(address=address or "local", **options)
            break
        except Exception as error:
            reason = first_line(error).removesuffix(".")
            if address is not None:
                hint = "" if "token" in reason else _TOKEN_HINT
                raise WorkError(f"Cannot connect to Ray at {address}: {reason}.{hint}") from None
            if attempt == len(token_contexts):
                raise WorkError(f"Cannot start Ray: {reason}.") from None
            ray.shutdown()
    _owns_cluster = address is None


def _token_contexts(address: str | None) -> list[_TokenContext]:
    """Return one context per attempt to start Ray. Within it, Ray finds the token of the cluster.

    On a busy machine, Ray may not start within its timeout of 30 s, so there is a second attempt. Ray reads a
    token once per process. A process that has used a cluster with the token in ~/.ray/auth_token, as
    notebooks may, cannot start a cluster with another token. The last attempt therefore uses this token.
    """
    if address is not None:
        return [nullcontext]  # the user has set the token of an existing cluster
    contexts: list[_TokenContext] = [_token_in_memory, _token_in_memory]
    if _TOKEN_FILE.exists():
        contexts.append(_token_in_file)
    return contexts


@contextmanager
def _token_in_memory() -> Iterator[None]:
    """Give a cluster that is started in this context a random token, unless the user has set a token.

    Without it, Ray 2.60 writes a token to ~/.ray/auth_token with the permissions of the umask. Other users
    could then read it, connect to the cluster and execute code. Ray's processes inherit the environment of
    this context. Later subprocesses do not, because they may connect to another cluster.
    """
    if os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = TOKEN
    try:
        yield
    finally:
        del os.environ["RAY_AUTH_TOKEN"]


@contextmanager
def _token_in_file() -> Iterator[None]:
    """Start a cluster with the token that this process has already read from ~/.ray/auth_token."""
    with suppress(OSError):
        _TOKEN_FILE.chmod(0o600)  # other users could execute code in the cluster
    yield


def _resource_options(num_cpus: int | None) -> dict[str, int]:
    """Return options of `ray.init` that limit resources to those that this process can use."""
    from prometar.device import num_gpus

    # Ray itself would also count GPUs that torch cannot use, and all MIG slices of a GPU as one GPU.
    options = {"num_gpus": num_gpus()}
    if num_cpus is None and usable_cpus() < (os.cpu_count() or 1):  # e.g. in a Slurm job
        num_cpus = usable_cpus()
    if num_cpus is not None:
        options["num_cpus"] = num_cpus
    return options


@contextmanager
def preserve_signal_handlers() -> Iterator[None]:
    """Restore the signal handlers after this context, and prevent Ray's processes from ignoring SIGINT.

    Ray cancels tasks with SIGINT. A shell starts its background jobs with SIGINT ignored, and their child
    processes would inherit this.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupt = signal.getsignal(signal.SIGINT)
    terminate = signal.getsignal(signal.SIGTERM)
    if interrupt is signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: None)  # not inherited, unlike SIG_IGN
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, interrupt)
        if callable(terminate):  # instead of SIG_DFL, keep Ray's handler, which exits cleanly
            signal.signal(signal.SIGTERM, terminate)


def owns_cluster() -> bool:
    """Return True if this process started the Ray cluster that it uses."""
    return _owns_cluster


def head_is_dead() -> bool:
    """Return True if the head of the Ray cluster refuses connections."""
    import ray

    try:
        if ray.is_initialized():
            _probe(ray.get_runtime_context().gcs_address)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False  # the head may be alive, e.g. if the network is down
    return False


def local_node_is_dead() -> bool:
    """Return True if the head of the Ray cluster considers the node of this machine dead."""
    import ray

    if not ray.is_initialized():
        return False
    this_node = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == this_node and not node["Alive"] for node in ray.nodes())


def _probe(address: str) -> None:
    """Connect to the server at `address`, then disconnect. Raise OSError if the connection fails."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _require_server(address: str) -> None:
    """Raise if `address` is invalid or its server is down. Ray itself would retry for ten minutes."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "")
        if address in {"", "auto", "local"}:
            return  # `ray.init` looks for a cluster on this machine
    host, _, port = address.rpartition(":")
    if "://" in address:
        raise UserError(
            f"--address {address}: Ray Client is not supported. Run the command on a machine of "
            "the cluster (--address auto), or submit it (clusters/submit.py)."
        )
    if not (host and port.isdigit()):
        raise UserError(f"--address must be auto or HOST:PORT of the cluster's head, got {address}.")
    try:
        _probe(address)
    except (OSError, OverflowError) as error:
        raise WorkError(f"Cannot connect to Ray at {address}: {error}. Check that it is running.") from None
