"""What a run was made with, and on: versions and machine."""

import os
import platform
import sys
from contextlib import suppress
from importlib.metadata import version


def environment() -> dict[str, str]:
    """Versions and machine, for records; its GPU where this process has computed on one."""
    packages = ("prometar", "torch", "open_clip_torch", "ray", "optuna", "numpy")
    machine = {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
    }
    return {**{name: version(name) for name in packages}, **machine, **_gpu()}


def num_cpus() -> int:
    """CPUs that this process may run on; all of a machine that does not bound them, as a Mac."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpu() -> dict[str, str]:
    """Its name: another rounds otherwise. Torch is not loaded for it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        with suppress(RuntimeError):  # it has failed, as whoever asked it has been told
            return {"gpu": torch.cuda.get_device_name()}
    return {}
