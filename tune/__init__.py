"""The study: Optuna remembers, Ray executes. In Python: `from tune import Study, Space`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["Space", "Study"]

if TYPE_CHECKING:
    from tune.api import Study
    from tune.space.spaces import Space


def __getattr__(name: str) -> Any:
    """`tune.Study` and `tune.Space`, imported when they are first used: this package's tools load little."""
    if name == "Study":
        from tune.api import Study

        return Study
    if name == "Space":
        from tune.space.spaces import Space

        return Space
    raise AttributeError(f"module 'tune' has no attribute '{name}'")
