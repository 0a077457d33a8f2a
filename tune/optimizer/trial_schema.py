"""What the study's storage keeps of a trial besides Optuna's own fields, and a trial as a record."""

from __future__ import annotations

from datetime import datetime
from typing import Any, cast

from optuna.trial import FrozenTrial, TrialState

from tune.results.schema import Epoch, Run, State, TrialRecord

REFERENCE = "reference"  # user attributes of an Optuna trial
REASON = "reason"
RESULT = "result"
ORIGIN = "origin"
CURVE = "curve"
LOSSES = "losses"
ENQUEUED = "fixed_params"  # a system attribute, Optuna's own: settings that a trial was enqueued with

FORGIVEN = "forgiven"  # user attributes of an Optuna study
SEARCHED = "seconds_searched"

KEPT = ("epoch", "objective", "base", "new", "loss", "seconds", "runs", "notes", "cpus", "gpus")
"""Figures of a trial's last result that are kept with it."""


def record_of(trial: FrozenTrial) -> TrialRecord:
    """A trial that has ended, as it is recorded."""
    marks = trial.user_attrs
    last: dict[str, Any] = marks.get(RESULT, {})
    state, reference = cast(State, trial.state.name), bool(marks.get(REFERENCE, False))
    return TrialRecord(
        number=trial.number,
        state=state,
        reference=reference,
        origin=marks.get(ORIGIN, "released" if reference else "sampled"),
        settings=dict(trial.params),
        given=dict(trial.system_attrs.get(ENQUEUED, {})),
        objective=last.get("objective"),
        base=last.get("base"),
        new=last.get("new"),
        loss=last.get("loss"),
        epoch=last.get("epoch", 0),
        epochs=tuple(Epoch(epoch, value) for epoch, value in sorted(curve_of(trial).items())),
        runs=tuple(Run(**run) for run in last.get("runs", ())),
        seconds=last.get("seconds", 0.0),
        cpus=last.get("cpus", 0.0),
        gpus=last.get("gpus", 0.0),
        notes=tuple(last.get("notes", ())),
        reason=str(marks.get(REASON, "")) if state == "FAIL" else "",
        started=_moment(trial.datetime_start),
        ended=_moment(trial.datetime_complete),
    )


def curve_of(trial: FrozenTrial) -> dict[int, float]:
    """The objective by epoch, as far as it was told."""
    curve = trial.intermediate_values or trial.user_attrs.get(CURVE, {})
    return {int(epoch): float(value) for epoch, value in curve.items()}


def interrupted(trial: FrozenTrial) -> bool:
    """Whether a trial was begun, and is not over: its driver died, or let go of it."""
    return trial.state is TrialState.RUNNING or (trial.state is TrialState.WAITING and bool(trial.params))


def _moment(moment: datetime | None) -> datetime | None:
    return moment.replace(microsecond=0) if moment else None
