"""A run's folder: config.yaml, checkpoint.safetensors while and after it trains, result.json at its end."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prometar.checkpoint import load_checkpoint, write_atomically
from prometar.config import Config, dump_config, load_config
from prometar.data.stream import StreamOptions, stream
from prometar.errors import UserError
from prometar.train import Run, Session, Stream, build_run

FINAL = "final"
"""The objective of a run outside a search: train on all base classes, test once at the end."""


def ray_stream(run: Run, options: StreamOptions | None = None) -> Stream:
    """The run's images on Ray Data; Ray must be running."""
    return lambda plan, step: stream(plan, run.dataset.source, start_step=step, options=options)


def train_run(
    config: Config, folder: Path, *, on_epoch: Callable[[dict[str, Any]], None] = lambda record: None
) -> dict[str, Any]:
    """Train on all base classes and test; goes on from the folder's checkpoint. Returns the last record.

    Raises:
        UserError: whatever is wrong with the configuration, the data or the weights.
        WorkError: the folder holds another run, or the loss is not finite.
    """
    run = build_run(config, FINAL)
    session = Session(run, folder, ray_stream(run))
    write_atomically(folder / "config.yaml", dump_config(config).encode())
    while not session.finished:
        on_epoch(session.epoch())
    session.close()
    write_result(folder, session)
    return session.history[-1]


def write_result(folder: Path, session: Session) -> None:
    """result.json: the accuracies, every epoch's record, and what made them."""
    result = {
        "result": session.history[-1],
        "history": session.history,
        "run": session.run.digest,
        "environment": environment(),
    }
    write_atomically(folder / "result.json", json.dumps(result, indent=1).encode())


def evaluate_run(folder: Path) -> dict[str, float]:
    """Test a finished run's prompts again: accuracies in percent and their harmonic mean.

    Raises:
        UserError: the folder holds no run, or one that has not finished.
    """
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} holds no run: pass a folder that `prometar train --out` wrote")
    run = build_run(load_config(folder / "config.yaml"), FINAL)
    if load_checkpoint(folder / "checkpoint.safetensors") is None:
        raise UserError(f"{folder} has no checkpoint.safetensors: train the run first")
    session = Session(run, folder, ray_stream(run))
    if not session.finished:
        done, epochs = len(session.history), run.config.train.epochs
        raise UserError(
            f"the run in {folder} has done {done} of {epochs} epochs: finish it with `prometar train`"
        )
    return session.score()


def environment() -> dict[str, str]:
    """Versions and machine, for records."""
    packages = ("prometar", "torch", "open_clip_torch", "ray", "optuna", "numpy")
    machine = {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
    }
    return {**{name: version(name) for name in packages}, **machine}
