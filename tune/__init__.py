"""Hyperparameter studies: Optuna samples and stores trials, and Ray runs them.

Example:
    >>> from tune import Study
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["Space", "Study", "StudyConfig"]
_MODULES = {"Space": "tune.space.space", "Study": "tune.study", "StudyConfig": "tune.config"}
"""Module that defines each public name."""

if TYPE_CHECKING:
    from tune.config import StudyConfig
    from tune.space.space import Space
    from tune.study import Study


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that workers load only what they need."""
    if name not in _MODULES:
        raise AttributeError(f"module 'tune' has no attribute '{name}'")
    module = import_module(_MODULES[name])
    return getattr(module, name)
