"""What a run was made with: versions and machine."""

from __future__ import annotations

import platform
from importlib.metadata import version


def environment() -> dict[str, str]:
    """Versions and machine, for records."""
    packages = ("prometar", "torch", "open_clip_torch", "ray", "optuna", "numpy")
    machine = {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
    }
    return {**{name: version(name) for name in packages}, **machine}
