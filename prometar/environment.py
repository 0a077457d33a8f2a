"""What a run was made with: versions and machine."""

from __future__ import annotations

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


def _gpu() -> dict[str, str]:
    """Its name: another rounds otherwise. Torch is not loaded for it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        with suppress(RuntimeError):  # it has failed, as whoever asked it has been told
            return {"gpu": torch.cuda.get_device_name()}
    return {}
