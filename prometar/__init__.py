"""Hyperparameter studies for CLIP prompt learning with ProMetaR."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["load"]

if TYPE_CHECKING:
    from prometar.inference.classifier import load


def __getattr__(name: str) -> Any:
    """`prometar.load`, imported when it is first used: torch loads slowly."""
    if name != "load":
        raise AttributeError(f"module 'prometar' has no attribute '{name}'")
    from prometar.inference.classifier import load

    return load
