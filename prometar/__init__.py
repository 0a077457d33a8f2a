"""Hyperparameter studies for CLIP prompt learning with ProMetaR."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = ["Study", "load"]

if TYPE_CHECKING:
    from prometar.inference.classifier import load
    from tune.study import Study

_MODULES = {"load": "prometar.inference.classifier", "Study": "tune.study"}


def __getattr__(name: str) -> Any:
    """Import `load` or `Study` on first use, because importing torch is slow."""
    if name not in _MODULES:
        raise AttributeError(f"module 'prometar' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)
