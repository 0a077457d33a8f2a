"""One run as a driver hands it to a worker: plain data, complete in itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Job:
    """What to train and where its state lies.

    Args:
        run_dir: Absolute folder of the run's checkpoint and result.
        config: A complete configuration, `Config.model_dump(mode="json")`.
        objective: Its images and scores (`prometar.objective`).
        settings: The searched settings alone, for messages.
        val_per_class: Most validation images a class that a search scores on (default 20).
        threads: Torch threads of the worker (default 1).
        stream_cpus: Logical CPUs of its stream's tasks (default 0.5).
    """

    run_dir: str
    config: dict[str, Any]
    objective: str
    settings: dict[str, Any] = field(default_factory=dict)
    val_per_class: int = 20
    threads: int = 1
    stream_cpus: float = 0.5


def pack(jobs: Sequence[Job]) -> dict[str, Any]:
    """What one worker gets, as plain data for Ray's configuration."""
    return {"jobs": [asdict(job) for job in jobs]}


def unpack(config: dict[str, Any]) -> list[Job]:
    """The inverse of `pack`."""
    return [Job(**job) for job in config["jobs"]]
