"""Small runs on a backbone with two small layers per tower and random weights.

They take a quarter of the time of runs with `mini`.
"""

from typing import Any

from open_clip import factory

from prometar.config.settings import Config
from prometar.training.cache import RunCache
from prometar.training.run import Run, build_run
from prometar.training.session import Session
from tests.support import tiny

NAME = "tiny-plain"

factory._MODEL_CONFIGS[NAME] = tiny.config(layers=2)  # known only in this process

BACKBONE: dict[str, Any] = {"backbone.name": NAME, "backbone.pretrained": "random"}
"""Settings of the backbone."""

SMALL: dict[str, Any] = {
    **BACKBONE,
    "data.name": "cells",
    "data.shots": 2,
    "train.epochs": 3,
    "inner.lr": 0.1,
    "inner.outer_weight": 0.5,
}


def small_run(
    method: str = "prometar", objective: str = "drift", *, shared: RunCache | None = None, **values: Any
) -> Run:
    """Return a run on the rendered `cells`.

    Args:
        method: Name of the method.
        objective: Objective of the run.
        shared: Cache that several runs share.
        values: Settings. `train__epochs=2` is the setting `train.epochs`.
    """
    dotted = {key.replace("__", "."): value for key, value in values.items()}
    config = Config(method=method).override({**SMALL, **dotted})
    return build_run(config, objective, val_per_class=1, shared=shared)


def train(session: Session) -> list[dict[str, Any]]:
    """Train to the end. Return the history."""
    while not session.finished:
        session.run_epoch()
    session.close()
    return session.history


def without_time(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a history without the durations of epochs, which differ between equal runs."""
    return [{name: value for name, value in record.items() if name != "seconds"} for record in history]
