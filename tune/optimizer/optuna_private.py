"""All that is used of Optuna's private names: another version may lack them, or mean other things by them."""

import heapq
import json
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext

LATEST, BEST = 1000, 100  # trials of which TPE's model is made, in a study of more


class RememberingTPE(TPESampler):
    """TPE whose model is made of the latest and the best trials alone."""

    def _sample(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:  # every draw from the model comes here, of one setting or of all
        return super()._sample(cast(optuna.Study, Remembered(study)), trial, search_space)


class Remembered:
    """A study of one goal with its `LATEST` trials, and of the others the `BEST`; any study in all else."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(self, *args: Any, **named: Any) -> list[FrozenTrial]:
        trials = self._study._get_trials(*args, **named)
        earlier = trials[:-LATEST]
        if not earlier or len(self._study.directions) > 1:
            return trials
        finished = [(t.value, -t.number) for t in earlier if t.state is TrialState.COMPLETE]
        numbers = {-number for _, number in heapq.nlargest(BEST, finished)}
        return [t for t in earlier if t.number in numbers] + trials[-LATEST:]


def id_of(trial: FrozenTrial) -> int:
    """What its storage knows a trial by."""
    return trial._trial_id


def let_go(storage: BaseStorage) -> None:
    """Close the connections of a database, which Optuna has wrapped in a cache of its own."""
    if isinstance(database := _unwrapped(storage), RDBStorage):
        database.engine.dispose()


def set_first(storage: BaseStorage, study_id: int, key: str, value: Any) -> None:
    """Give a study an attribute that it has not; nothing where another process is the first.

    Optuna's own call looks first, and then takes the place of what has come since.
    """
    if not isinstance(database := _unwrapped(storage), RDBStorage):
        storage.set_study_user_attr(study_id, key, value)
        return
    row = models.StudyUserAttributeModel(study_id=study_id, key=key, value_json=json.dumps(value))
    with _create_scoped_session(database.scoped_session, ignore_integrity_error=True) as session:
        session.add(row)


def _unwrapped(storage: BaseStorage) -> BaseStorage:
    return getattr(storage, "_backend", storage)


class Disconnected(Exception):
    """A database's connection has been lost: nobody knows whether the last statement was carried out."""


def write_nothing_twice(database: RDBStorage) -> None:
    """Have a lost connection end what is done, as a `Disconnected`.

    Optuna begins a trial up to five times. Where only the answer to the first is lost, there would be two.
    """
    event.listen(database.engine, "handle_error", _give_up)


def _give_up(context: ExceptionContext) -> None:
    error = context.sqlalchemy_exception  # none where it was a signal that interrupted a statement
    if error is not None and context.is_disconnect and not context.is_pre_ping:
        raise Disconnected(str(error))
