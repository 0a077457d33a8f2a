"""Software versions and hardware of the current process."""

import os
import platform
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version


def environment() -> dict[str, str]:
    """Return software versions, the platform, and the name of the GPU if this process has used one."""
    packages = ("prometar", "torch", "open_clip_torch", "ray", "optuna", "numpy")
    description: dict[str, str] = {}
    for name in packages:
        with suppress(PackageNotFoundError):  # Ray and Optuna are optional
            description[name] = version(name)
    description["python"] = platform.python_version()
    description["system"] = platform.system()
    description["machine"] = platform.machine()
    torch = sys.modules.get("torch")  # a process that has not imported torch has not used a GPU
    if torch is not None and torch.cuda.is_initialized():
        with suppress(RuntimeError):  # a GPU that fails here has already been reported
            description["gpu"] = torch.cuda.get_device_name()
    return description


def num_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
