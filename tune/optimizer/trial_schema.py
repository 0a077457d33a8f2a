"""What the study's storage keeps of a trial besides Optuna's own fields, and a trial as a record."""

from collections.abc import Mapping
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

KEPT: Mapping[str, Any] = {
    "epoch": 0, "objective": None, "base": None, "new": None, "loss": None, "seconds": 0.0, "runs": (),
    "notes": (), "cpus": 0.0, "gpus": 0.0,
}  # fmt: skip
"""Figures of a trial's last result that are kept with it, and what a trial has that has told none."""


def record_of(trial: FrozenTrial) -> TrialRecord:
    """A trial that has ended, as it is recorded."""
    marks = trial.user_attrs
    last: dict[str, Any] = {**KEPT, **marks.get(RESULT, {})}
    last |= {"runs": tuple(Run(**run) for run in last["runs"]), "notes": tuple(last["notes"])}
    state, reference = cast(State, trial.state.name), bool(marks.get(REFERENCE, False))
    return TrialRecord(
        number=trial.number,
        state=state,
        reference=reference,
        origin=marks.get(ORIGIN, "released" if reference else "sampled"),
        settings=dict(trial.params),
        given=dict(trial.system_attrs.get(ENQUEUED, {})),
        epochs=tuple(Epoch(epoch, value) for epoch, value in sorted(curve_of(trial).items())),
        reason=str(marks.get(REASON, "")) if state == "FAIL" else "",
        started=_moment(trial.datetime_start),
        ended=_moment(trial.datetime_complete),
        **last,
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
