"""The study: Optuna remembers, Ray executes. In Python: `from tune import Study, Space`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["Space", "Study"]
_PLACES = {"Space": "tune.space.spaces", "Study": "tune.api"}

if TYPE_CHECKING:
    from tune.api import Study
    from tune.space.spaces import Space


def __getattr__(name: str) -> Any:
    """`tune.Study` and `tune.Space`, imported when they are first used: this package's tools load little."""
    if name not in _PLACES:
        raise AttributeError(f"module 'tune' has no attribute '{name}'")
    return getattr(import_module(_PLACES[name]), name)
