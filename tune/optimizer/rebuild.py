"""A study's trials made anew from their records, where its database is lost."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from optuna.exceptions import DuplicatedStudyError
from optuna.study import StudyDirection
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from prometar.errors import UserError, first_line
from prometar.io.stores import masked
from tune.optimizer.choices import Search
from tune.optimizer.storage import DamagedError, backend_of, file_of, opening
from tune.optimizer.trial_counts import REPEAT
from tune.optimizer.trial_schema import (
    CURVE,
    ENQUEUED,
    FORGIVEN,
    KEPT,
    ORIGIN,
    REASON,
    REFERENCE,
    RESULT,
    SEARCHED,
)
from tune.results.goals import GOALS
from tune.results.schema import Run, TrialRecord


def odd_records(kept: Iterable[FrozenTrial], records: Sequence[TrialRecord]) -> list[int]:
    """Numbers of the recorded trials that are not kept, or with other settings or in another state."""
    by_number = {trial.number: trial for trial in kept}
    return [
        record.number
        for record in records
        if (trial := by_number.get(record.number)) is None
        or trial.state.name != record.state
        or trial.params != record.settings
    ]


def kept_in(storage: str, name: str) -> tuple[set[str], list[FrozenTrial]]:
    """The names of a storage's studies, and the trials of the study `name`.

    Nothing, and none is made, where there is no storage, or its file is damaged.
    """
    file = file_of(storage)
    if file is not None and not Path(file).exists():
        return set(), []
    try:
        with opening(storage):
            backend = backend_of(storage)
            names = {study.study_name for study in backend.get_all_studies()}
            if name not in names:
                return names, []
            return names, backend.get_all_trials(backend.get_study_id_from_name(name), deepcopy=False)
    except DamagedError:
        return set(), []


def rebuild(
    storage: str,
    name: str,
    records: Sequence[TrialRecord],
    search: Search,
    *,
    at_least: int,
    forgiven: Sequence[int] = (),
    seconds_searched: float = 0.0,
) -> None:
    """Write the trials of `records` into a storage that does not have the study yet, under their numbers.

    A number below `at_least` or the last record's that has none is taken by a trial that counts for nothing.
    `forgiven`: failed ones that count for nothing either (`StudyRecord`).

    Raises:
        UserError: a record's settings are not of this space, or the storage still holds a study of this name.
        WorkError: the storage cannot be reached.
    """
    by_number = {record.number: record for record in records}
    gap = create_trial(state=TrialState.FAIL, user_attrs={REPEAT: -1, REASON: "its record is not there"})
    trials = [
        _trial(by_number[number], search) if number in by_number else gap
        for number in range(max([at_least, *(number + 1 for number in by_number)]))
    ]
    with opening(storage):
        backend = backend_of(storage)
        try:
            study = backend.create_new_study(
                [StudyDirection[GOALS[goal].upper()] for goal in search.goals], name
            )
        except DuplicatedStudyError:
            raise UserError(
                f"{masked(storage)} still holds a study {name}, with other trials: remove it there (`optuna "
                f"delete-study --study-name {name}`), and repeat the command"
            ) from None
        for key, value in ((FORGIVEN, list(forgiven)), (SEARCHED, seconds_searched)):
            backend.set_study_user_attr(study, key, value)
        for trial in trials:
            backend.create_new_trial(study, trial)


def _trial(record: TrialRecord, search: Search) -> FrozenTrial:
    what = f"the record of trial {record.number}"
    space, goals = search.space, search.goals
    settings = space.checked(record.settings, what=what)
    fixed = FixedTrial(settings)
    try:
        space.draw(fixed)
    except ValueError as error:
        raise UserError(f"{what} does not hold all settings: {first_line(error)}") from None
    state = TrialState[record.state]
    curve = {point.epoch: point.objective for point in record.epochs}
    one = len(goals) == 1
    marks: dict[str, Any] = {ORIGIN: record.origin}
    if record.epoch:
        last = vars(record) | {"runs": [_plain(run) for run in record.runs]}
        marks[RESULT] = {key: last[key] for key in KEPT if last[key] is not None}
    if record.reference:
        marks[REFERENCE] = True
    if record.reason:
        marks[REASON] = record.reason
    if curve and not one:
        marks[CURVE] = {str(epoch): value for epoch, value in curve.items()}
    values = [float(record.goal(goal) or 0.0) for goal in goals] if state is TrialState.COMPLETE else None
    if state is TrialState.PRUNED and curve:
        values = [curve[max(curve)]]  # as Optuna keeps it
    trial = create_trial(
        state=state,
        values=values,
        params=settings,
        distributions=fixed.distributions,
        user_attrs=marks,
        # So that the same --enqueue and --warm-start are known to have been taken.
        system_attrs={ENQUEUED: dict(record.given)} if record.given else {},
        intermediate_values=curve if one else {},
    )
    for bound in search.bounds if state is not TrialState.FAIL else ():
        trial.set_constraint(str(bound), bound.excess(record.goal(bound.figure)))
    trial.datetime_start, trial.datetime_complete = record.started, record.ended
    return trial


def _plain(run: Run) -> dict[str, Any]:
    """What a worker tells of a run."""
    return {key: value for key, value in vars(run).items() if value not in (None, "")}
