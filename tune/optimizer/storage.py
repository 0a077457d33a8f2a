"""Where a study is kept: an Optuna storage, which its driver alone writes, and reads once."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage, get_storage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import ArgumentError, DatabaseError, SQLAlchemyError

from prometar.errors import StorageError, UserError, WorkError
from prometar.io.stores import masked
from tune.optimizer.optuna_private import Disconnected, id_of, let_go, set_first, write_nothing_twice

# Of a storage that fails, or that another process writes too.
LOST = SQLAlchemyError, StorageInternalError, Disconnected, UpdateFinishedTrialError
GO_ON = "the same command goes on from here"
Directions = Sequence[Literal["minimize", "maximize"]]

_LOOKS = 5  # at a fresh database whose tables other processes are making, one after another
_MADE = "already exists", "UNIQUE constraint"  # what is said then; the second by SQLite of a table's rows


class WriteThrough(InMemoryStorage):
    """One study of a storage, in memory: what is written goes there first, what is read comes from here.

    A study has one driver, so nobody else writes. Optuna's own cache asks the database again for every trial
    that has not ended, at each report of each of them: with n at a time, that is n^2 of them an epoch.

    A trial that is begun is written as a whole, once its settings have been drawn (`keep`): a driver that
    dies before has begun none. A trial's id is its number.

    Args:
        backend: Holds the study `name`.
    """

    def __init__(self, backend: BaseStorage, name: str) -> None:
        super().__init__()
        self._backend = backend
        self._kept_as = backend.get_study_id_from_name(name)
        self._study = study = super().create_new_study(backend.get_study_directions(self._kept_as), name)
        for key, value in backend.get_study_user_attrs(self._kept_as).items():
            super().set_study_user_attr(study, key, value)
        for key, value in backend.get_study_system_attrs(self._kept_as).items():
            super().set_study_system_attr(study, key, value)
        self._trials_kept_as: list[int] = []  # by number; the last trial may be missing
        for trial in backend.get_all_trials(self._kept_as):
            self._trials_kept_as.append(id_of(trial))
            super().create_new_trial(study, trial)

    def close(self) -> None:
        """Let go of the database."""
        let_go(self._backend)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._backend.set_study_user_attr(self._kept_as, key, value)
        super().set_study_user_attr(study_id, key, _as_read(value))

    def claim(self, key: str, value: Any) -> Any:
        """What the study has under `key`: this value, unless another process was the first."""
        if key not in self._backend.get_study_user_attrs(self._kept_as):
            set_first(self._backend, self._kept_as, key, value)
        found = self._backend.get_study_user_attrs(self._kept_as)[key]
        super().set_study_user_attr(self._study, key, found)
        return found

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._backend.set_study_system_attr(self._kept_as, key, value)
        super().set_study_system_attr(study_id, key, _as_read(value))

    def keep(self) -> None:
        """Write the trial that was begun last, if it is only here."""
        number = len(self._trials_kept_as)
        if number < self.get_n_trials(self._study):
            self._create(self.get_trial(number))

    def _create(self, trial: FrozenTrial) -> None:
        number, kept_as = len(self._trials_kept_as), self._backend.create_new_trial(self._kept_as, trial)
        if self._backend.get_trial_number_from_id(kept_as) != number:
            raise StorageError(f"the study has a trial {number} already: another process writes it too")
        self._trials_kept_as.append(kept_as)

    def _only_here(self, number: int) -> bool:
        return number == len(self._trials_kept_as)

    def _where_kept(self, number: int) -> int:
        if self._only_here(number):
            self.keep()
        return self._trials_kept_as[number]

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        self.keep()
        if template_trial is not None:
            self._create(template_trial)
        return super().create_new_trial(study_id, template_trial)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        if not self._only_here(trial_id):
            kept_as = self._trials_kept_as[trial_id]
            self._backend.set_trial_param(kept_as, param_name, param_value_internal, distribution)
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        done = self._backend.set_trial_state_values(self._where_kept(trial_id), state, values)
        return super().set_trial_state_values(trial_id, state, values) and done

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._backend.set_trial_intermediate_value(self._where_kept(trial_id), step, intermediate_value)
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        if not self._only_here(trial_id):
            self._backend.set_trial_user_attr(self._trials_kept_as[trial_id], key, value)
        super().set_trial_user_attr(trial_id, key, _as_read(value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        if not self._only_here(trial_id):
            self._backend.set_trial_system_attr(self._trials_kept_as[trial_id], key, value)
        super().set_trial_system_attr(trial_id, key, _as_read(value))


def _as_read(value: Any) -> Any:
    """As the next driver will read it: e.g. a tuple as a list."""
    return json.loads(json.dumps(value))


def drive_study(
    storage: str, name: str, *, directions: Directions = ("maximize",), pruner: BasePruner | None = None
) -> tuple[optuna.Study, WriteThrough]:
    """A study for its one driver, who alone writes it, and where that is kept; created where there is none.

    Raises:
        UserError: there is no such kind of storage. WorkError: it cannot be reached.
    """
    with opening(storage):
        backend = backend_of(storage)
        optuna.create_study(
            storage=backend, study_name=name, directions=list(directions), load_if_exists=True
        )
        kept = WriteThrough(backend, name)
        return optuna.load_study(storage=kept, study_name=name, pruner=pruner), kept


def backend_of(storage: str | BaseStorage) -> BaseStorage:
    """A database whose connections may end while nothing is written, and where nothing is written twice.

    A storage that is no URL is taken as it is.
    """
    if isinstance(storage, BaseStorage):
        return storage
    engine: dict[str, Any] = {"pool_pre_ping": True}
    if storage.startswith("postgresql+psycopg"):
        # Of a server without an encoding it would read bytes. And what it prepares on a server's connection
        # is not there where a pooler gives it another one for the next transaction.
        engine["connect_args"] = {"client_encoding": "utf8", "prepare_threshold": None}
    for look in range(1, _LOOKS + 1):
        try:
            database = RDBStorage(storage, engine_kwargs=engine)
            break
        except SQLAlchemyError as error:
            if look == _LOOKS or not any(said in str(error) for said in _MADE):
                raise
            time.sleep(0.2)
    write_nothing_twice(database)
    return get_storage(database)


def file_of(storage: str) -> str | None:
    """The file of an SQLite storage."""
    return storage.removeprefix("sqlite:///") if storage.startswith("sqlite:///") else None


class DamagedError(WorkError):
    """The storage's file is no database any more, or only in part."""


def _require_whole(storage: str, error: Exception) -> None:
    """Raises a DamagedError where that is what an error says."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    file = file_of(storage)
    if file is None:
        return
    # Of other types are those of a file that is locked, or cannot be written.
    damaged = type(cause) is DatabaseError or "unsupported file format" in str(cause)
    if damaged or os.path.isdir(file):
        raise DamagedError(
            f"{file} is damaged: move it away; then the same command makes a new one, with --from-records "
            "where there are records of trials"
        ) from None


@contextmanager
def opening(storage: str) -> Iterator[None]:
    """While a storage is opened: what is wrong with it is one line.

    Raises:
        UserError: there is no such kind of storage. WorkError: it cannot be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    except (*LOST, ImportError, RuntimeError, ValueError) as error:  # tables of another version of Optuna's
        _require_whole(storage, error)
        reason = f"cannot open the study storage {storage}: {_cause(error)}"
        if isinstance(error, LOST) and not isinstance(error, ArgumentError):
            raise WorkError(f"{masked(reason)}; when it answers again, {GO_ON}") from None
        lacks = isinstance(error, ImportError) and "psycopg" in reason.rpartition(": ")[2]
        raise UserError(masked(reason) + (": pip install '.[postgresql]'" if lacks else "")) from None


@contextmanager
def reachable(storage: str) -> Iterator[None]:
    """While a study's storage is used: its loss is one line, not a traceback.

    Raises:
        WorkError: the storage failed, or another process writes the same study.
    """
    try:
        yield
    except UpdateFinishedTrialError:
        raise WorkError(
            f"another process writes this study in {masked(storage)} too: end one of them; then {GO_ON}"
        ) from None
    except LOST as error:
        if (file := file_of(storage)) is not None and not os.path.exists(file):
            raise WorkError(
                f"{file} has been moved or removed meanwhile: put it back; then {GO_ON}"
            ) from None
        _require_whole(storage, error)
        reason = masked(f"the study storage {storage} failed: {_cause(error)}")
        raise WorkError(f"{reason}; {GO_ON}") from None


def _cause(error: Exception) -> str:
    """Optuna's own text speaks of invalid data, whatever the cause."""
    return str(error.__cause__ or error).splitlines()[0]
