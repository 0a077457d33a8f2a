"""A quiet Ray in this process: started where none runs, or joined by address."""

import logging
import os
import re
import resource
import secrets
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from prometar.distributed.allotment import allotted, task_limit
from prometar.distributed.ray_private import (
    ended_where_it_fails,
    imports_as_here,
    own_answer_to_sigterm,
    without_helpers,
)
from prometar.errors import UserError, WorkError, first_line, one_line
from prometar.interrupts import handled

# Ray ends a worker that idles for a second; a stream between two epochs would start one anew each time.
# And a call after `ray.shutdown`, such as that of a stream that is closed late, would start a Ray of its own,
# which nobody ends.
_ALWAYS = {
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",
}
_QUIET = {"RAY_AIR_NEW_OUTPUT": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
# As Ray does by itself on a Mac: one machine, and every server on 127.0.0.1 instead of all its addresses.
# And a worker when it is needed: Ray would start one for each CPU, 80 MB and half a second of a core each,
# however few trials run at a time.
_LOCAL = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_prestart_worker_first_driver": "0"}

_TOO_SLOW = ("timed out during startup", "Failed to connect to GCS", "Timed out waiting for file")
LOCAL = "local"  # Ray's name for one of its own
_STARTING = threading.Lock()
_TOKEN = " (where it asks for a token: RAY_AUTH_MODE=token, and the token in ~/.ray/auth_token)"


def configure_ray(*, local: bool = True, verbose: bool = False) -> None:
    """Set what Ray reads from the environment; call it before anything imports ray."""
    if os.path.expanduser("~") == "~":  # a container's user who has no home: Ray Tune would not be imported
        os.environ["HOME"] = "/"  # as Docker has it
    for name, value in (_ALWAYS | (_LOCAL if local else {}) | ({} if verbose else _QUIET)).items():
        os.environ.setdefault(name, value)


def start_ray(
    *, address: str | None = None, num_cpus: int | None = None, verbose: bool = False
) -> list[dict[str, float]]:
    """Start Ray on what is allotted to this process of its machine, or join the cluster at `address`.

    Returns the resources of each of its machines, e.g. [{"CPU": 2.0}]. Does nothing where Ray already runs.
    A Ray that is started here listens on 127.0.0.1 alone, if nothing had imported ray before `configure_ray`.

    Raises:
        UserError: no such address. WorkError: no cluster there, or it does not let this process in.
    """
    configure_ray(local=address is None, verbose=verbose)
    if address is not None:
        _require_server(address)
    import ray

    with _STARTING:
        if ray.is_initialized() and (head_is_gone() or own_node_is_gone()):
            ray.shutdown()  # it has died since: between two studies of a notebook
        if not ray.is_initialized():
            _start(address, num_cpus=num_cpus, verbose=verbose)
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _start(address: str | None, *, num_cpus: int | None, verbose: bool) -> None:
    if address is None:
        _require_open_files()
        _require_tasks()
        if sys.flags.optimize > 1:  # Ray's own processes end where Python leaves docstrings out
            raise WorkError("Ray does not start with PYTHONOPTIMIZE=2: unset it")
        _require_room()
        _take_own_token()
    quiet: dict[str, Any] = {} if verbose else {"log_to_driver": False, "logging_level": logging.ERROR}
    local: dict[str, Any] = {}
    if address is None:
        local = {"include_dashboard": False} | allotted() | ({"num_cpus": num_cpus} if num_cpus else {})
    helped = nullcontext() if address or verbose else without_helpers()
    with helped, interrupts_heard(), own_answer_to_sigterm():
        _in_a_lasting_thread(lambda: _init(address=address or LOCAL, **quiet, **local, **imports_as_here()))


def _in_a_lasting_thread(call: Callable[[], None]) -> None:
    """Call it in a thread that lasts as long as the process: with theirs, Ray's processes are ended."""
    if threading.current_thread() is threading.main_thread():
        call()
        return
    done = Future[None]()

    def last() -> None:
        try:
            call()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)
            threading.Event().wait()

    threading.Thread(target=last, name="Ray's processes", daemon=True).start()
    done.result()


def _init(address: str, **options: Any) -> None:
    """`ray.init`; of a Ray that is started here, once more where a busy machine was too slow for it."""
    import ray

    for last in (False, True):
        try:
            with ended_where_it_fails():
                ray.init(address=address, **options)
        except Exception as error:
            slow = address == LOCAL and any(sign in str(error) for sign in _TOO_SLOW)
            if not slow and (reason := _refusal(error)):
                where = "has not started here" if address == LOCAL else f"cannot be joined at {address}"
                raise WorkError(f"Ray {where}: {reason}") from None
            if not slow:
                raise
            ray.shutdown()
            if last:
                raise WorkError(f"Ray has not started, twice: {_why_twice()}") from None
        else:
            return


def _why_twice() -> str:
    """Ray says the same of a slow machine and of its own processes that a mere warning ends."""
    warnings = os.environ.get("PYTHONWARNINGS", "")
    return f"unset PYTHONWARNINGS={warnings}" if "error" in warnings else "this machine is too busy"


def _refusal(error: Exception) -> str:
    """Why Ray lets nobody in, in one line; empty where that is not what the error says."""
    import ray

    if str(error).startswith("Version mismatch"):  # a RuntimeError like any other
        return f"{one_line(str(error)).rstrip('.')}; both sides must have the same versions"
    if not isinstance(error, (ConnectionError, ValueError, ray.exceptions.RayError)):
        return ""
    # Of a wrong token it says no more than the second.
    hint = _TOKEN if re.search("token|auth|failed to connect", str(error), flags=re.IGNORECASE) else ""
    return first_line(error).split(". ")[0] + hint


_FEWEST_FILES = 512  # that Ray's processes have open on a small machine; a raylet that has no more just dies


def _require_open_files() -> None:
    """Open as many files as may be, for Ray's processes too; raises a WorkError where those are too few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 2**20 if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(ValueError):  # a Mac's kernel allows fewer than it tells
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, max(soft, 65_536)), hard))
    if most < _FEWEST_FILES:
        raise WorkError(f"{most} files can be open here, and Ray needs {_FEWEST_FILES}: raise `ulimit -n`")


_FEWEST_TASKS = 192  # a study of one trial at a time on one CPU took 214; where more are begun, Ray crashes


def _require_tasks() -> None:
    """Raises a WorkError where a container, or another control group, allows too few."""
    if (most := task_limit()) is not None and most < _FEWEST_TASKS:
        raise WorkError(
            f"{most} processes and threads can run here, and Ray needs {_FEWEST_TASKS}: raise the "
            "container's limit (--pids-limit, podPidsLimit)"
        )


_LEAST_ROOM = 8 * 2**20  # bytes for its logs; it does not say what it lacks
_LONGEST_SOCKET = 107  # bytes of a path
_TAKEN_APART = "'\\"  # where it reads a worker's command as a shell does


def _require_room() -> None:
    """Raises a WorkError where Ray's own files find no room."""
    own = os.environ.get("TMPDIR") if sys.platform == "linux" else None  # a Mac's is too long: not taken
    folder = os.environ.get("RAY_TMPDIR") or own or "/tmp"
    keeps = f"Ray keeps its files in {folder}"
    longest = f"{folder}/ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    if len(os.fsencode(longest)) > _LONGEST_SOCKET:
        raise WorkError(f"{keeps}, too long a path for its sockets: set RAY_TMPDIR to a shorter one, as /tmp")
    if not folder.isascii() or set(_TAKEN_APART) & set(folder):
        raise WorkError(f"{keeps}, and cannot with that name: set RAY_TMPDIR to a plainer one, as /tmp")
    made = Path(folder, "ray")
    kept = made if made.exists() else Path(folder)
    if kept.exists() and not os.access(kept, os.W_OK | os.X_OK):
        raise WorkError(f"{keeps}, and {kept} cannot be written: set RAY_TMPDIR to another folder")
    with suppress(OSError):  # it is not there yet
        if (free := shutil.disk_usage(folder).free) < _LEAST_ROOM:
            room = f"{free / 2**20:.0f} MiB are free"
            raise WorkError(f"{keeps}, where {room}: make room, or set RAY_TMPDIR to another folder")


def _take_own_token() -> None:
    """Ray keeps its token in the home folder; where nothing can be kept there, it is this process's alone."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    folder = Path(os.path.expanduser("~"), ".ray")
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder / "auth_token", os.R_OK) or os.access(folder, os.W_OK):
            return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def interrupts_heard() -> AbstractContextManager[None]:
    """Meanwhile, interrupts are not ignored, as `&` in a script has it: what is started would inherit that.

    By an interrupt Ray cancels a task.
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    return handled([signal.SIGINT] if ignored else [], lambda number, frame: None)


def head_is_gone() -> bool:
    """Whether the Ray that this process is part of has lost its head: nobody listens there any more."""
    import ray

    try:
        if ray.is_initialized():
            _knock(ray.get_runtime_context().gcs_address)
    except ConnectionRefusedError:
        return True
    except OSError:  # nobody knows: it may be far away
        pass
    return False


def own_node_is_gone() -> bool:
    """Whether Ray's head holds the part of Ray on this machine for dead: nothing is run here any more."""
    import ray

    if not ray.is_initialized():
        return False
    own = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == own and not node["Alive"] for node in ray.nodes())


def _knock(address: str) -> None:
    """Raises OSError where nobody listens."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def require_address(address: str, *, name: str = "--address") -> None:
    """
    Raises:
        UserError: it is none that Ray can be joined at.
    """
    host, _, port = address.rpartition(":")
    if "://" in address:
        raise UserError(
            f"{name} {address}: a study is no client of Ray's; start it on a machine of the cluster "
            "(--address auto), or submit it (clusters/submit.py)"
        )
    if address != "auto" and not (host and port.isdigit()):
        raise UserError(f"{name} {address}: it is auto, or HOST:PORT of the cluster's head")


def _require_server(address: str) -> None:
    """Ray itself would try for ten minutes before it says that nobody is there."""
    require_address(address)
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "auto")
        if address in ("", "auto", LOCAL) or "://" in address:
            return  # Ray knows where to look
        require_address(address, name="RAY_ADDRESS")
    try:
        _knock(address)
    except (OSError, OverflowError) as error:
        raise WorkError(f"Ray cannot be joined at {address}: {error}") from None
