"""What of this machine its user may have, where that is less than all: batch systems share their nodes.

Ray asks the machine, and, in a container, the container: it does not know of a job beside others.
"""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from prometar.distributed.ray_private import MEMORY, taken_by_itself
from prometar.environment import num_cpus
from prometar.errors import StorageError

_OF_IMAGES = 0.3  # the share of its memory that Ray gives its object store, too
_LEAST_OF_IMAGES = 75 * 2**20  # with less, Ray does not start
_SHARED_MEMORY = Path("/dev/shm")
_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_Files = dict[str, tuple[str, str]]
"""Where control groups of both versions lie, by what their lines name, and the file of a limit."""
_MEMORY: _Files = {"": ("", "memory.max"), "memory": ("memory", "memory.limit_in_bytes")}
_TASKS: _Files = {"": ("", "pids.max"), "pids": ("pids", "pids.max")}


def allotted() -> dict[str, int]:
    """CPUs and bytes for `ray.init`, where they are fewer than what Ray would take by itself.

    And no GPUs where torch can use none: Ray asks their driver, and would place trials on them one by one.

    Example:
        A job of 8 CPUs and 32 GiB on a larger machine: {"num_cpus": 8, "object_store_memory": 10307921510,
        "_memory": 24051816858}
    """
    import torch

    found = {} if torch.cuda.is_available() else {"num_gpus": 0}
    usual_cpus, usual_memory = taken_by_itself()
    if (cpus := num_cpus()) < usual_cpus:
        found["num_cpus"] = cpus
    if (memory := memory_limit()) and memory < usual_memory:
        store = int(_OF_IMAGES * memory)
        with suppress(OSError):  # where there is hardly any shared memory, Ray takes files
            if (free := shutil.disk_usage(_SHARED_MEMORY).free) >= _LEAST_OF_IMAGES:
                store = min(store, free)
        found |= {"object_store_memory": store, MEMORY: memory - store}
    return found


def only_given_gpus() -> None:
    """Let a worker of Ray that was given no GPU see none: Ray hides the others only where it has given some.

    Before torch has looked for any.
    """
    import ray

    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def require_given_gpus(noun: str) -> None:
    """What Ray has given a worker, torch must be able to use: else a GPU is held, and the CPU computes.

    A machine that has joined a cluster tells of GPUs as their driver does.

    Args:
        noun: What a run is called in options (`--gpus-per-<noun>`).
    Raises:
        StorageError: torch can use none: this machine is to blame, and no run.
    """
    import ray

    from prometar.device import why_no_gpu

    if ray.get_gpu_ids() and (why := why_no_gpu()):
        raise StorageError(
            f"the machine {socket.gethostname()} has a GPU that its torch cannot use: {why}; mend its driver "
            f"or its torch, or pass --gpus-per-{noun} 0"
        )


def memory_limit(groups: Path = _GROUPS, own: Path = _OWN) -> int | None:
    """Bytes that this process's control groups allow, if that is less than the machine has.

    The outermost group is left out: that is the machine or the container, which Ray sees.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    inner = (limit for limit, outermost in _limits(_MEMORY, groups, own) if not outermost)
    least = min(inner, default=machine)
    return least if least < machine else None


def task_limit(groups: Path = _GROUPS, own: Path = _OWN) -> int | None:
    """Processes and threads that this process's control groups allow together, a container's too."""
    return min((limit for limit, _ in _limits(_TASKS, groups, own)), default=None)


def _limits(files: _Files, groups: Path, own: Path) -> Iterator[tuple[int, bool]]:
    """Each limit of this process's groups, and whether it is the outermost group's."""
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds not in files:
                continue
            below, file = files[kinds]
            top = groups / below
            group = top / path.strip("/")
            while group.is_relative_to(top):
                with suppress(OSError, ValueError):  # not there, or "max"
                    yield int((group / file).read_text()), group == top
                group = group.parent
