"""Optuna storage of a study: one driver writes it, and reads it once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import ArgumentError, DatabaseError, SQLAlchemyError

from prometar.errors import StorageError, UserError
from prometar.io.stores import masked

RESUME = "rerun the same command to resume"
Directions = Sequence[Literal["minimize", "maximize"]]


class WriteThrough(InMemoryStorage):
    """One study of a storage, cached in memory: writes go to the backend first, reads come from here.

    Optuna's own cache reads every unfinished trial again at each report, n^2 reads per epoch of n trials.

    A sampled trial is written as a whole by `store`, so a driver that dies before leaves nothing. IDs of
    trials are their numbers.

    Args:
        backend: Storage that contains the study `name`.
    """

    def __init__(self, backend: BaseStorage, name: str, url: str) -> None:
        super().__init__()
        self._backend, self._url = backend, url
        self._stored_study = stored = backend.get_study_id_from_name(name)
        self.study_id = super().create_new_study(backend.get_study_directions(stored), name)
        for key, value in backend.get_study_user_attrs(stored).items():
            super().set_study_user_attr(self.study_id, key, value)
        trials = sorted(backend.get_all_trials(stored), key=lambda trial: trial.number)
        for trial in trials:
            super().create_new_trial(self.study_id, trial)
        self._stored: dict[int, int | None] = {trial.number: None for trial in trials}  # IDs, once needed

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return self.get_all_trials(self.study_id, deepcopy=False)

    def _write(self, method: str, *args: Any) -> Any:
        with storage_errors(self._url):
            return getattr(self._backend, method)(*args)

    def _write_trial(self, method: str, number: int, *args: Any) -> Any:
        stored = self._stored[number]
        if stored is None:
            stored = self._write("get_trial_id_from_study_id_trial_number", self._stored_study, number)
            self._stored[number] = stored
        return self._write(method, stored, *args)

    def store(self, number: int) -> None:
        """Write a sampled trial that exists only in memory."""
        if number not in self._stored:
            self._create(number, self.get_trial(number))

    def _create(self, number: int, trial: FrozenTrial) -> None:
        stored = self._write("create_new_trial", self._stored_study, trial)
        if self._write("get_trial_number_from_id", stored) != number:
            raise StorageError(_another_writer(self._url))
        self._stored[number] = stored

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        self._write("set_study_user_attr", self._stored_study, key, value)
        super().set_study_user_attr(study_id, key, value)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        if template_trial is not None:
            self._create(len(self.trials), template_trial)
        return super().create_new_trial(study_id, template_trial)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        if trial_id in self._stored:
            self._write_trial("set_trial_param", trial_id, param_name, param_value_internal, distribution)
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        self.store(trial_id)
        if not self._write_trial("set_trial_state_values", trial_id, state, values):
            raise StorageError(_another_writer(self._url))
        return super().set_trial_state_values(trial_id, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self._write_trial("set_trial_intermediate_value", trial_id, step, intermediate_value)
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        if trial_id in self._stored:
            self._write_trial("set_trial_user_attr", trial_id, key, value)
        super().set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        if trial_id in self._stored:
            self._write_trial("set_trial_system_attr", trial_id, key, value)
        super().set_trial_system_attr(trial_id, key, value)

    def close(self) -> None:
        """Close the connections of a database."""
        if isinstance(self._backend, RDBStorage):
            self._backend.engine.dispose()


def open_storage(storage: str | BaseStorage, name: str, directions: Directions) -> WriteThrough:
    """Open a study's storage. Create the study if there is none.

    Args:
        storage: URL of a database, or a storage that is used as it is.

    Raises:
        UserError: the URL is invalid. StorageError: the database cannot be reached, or is corrupt.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url = storage if isinstance(storage, str) else "memory"
    with storage_errors(url), _opening(url):
        backend = _database(storage) if isinstance(storage, str) else storage
        optuna.create_study(
            storage=backend, study_name=name, directions=list(directions), load_if_exists=True
        )
        return WriteThrough(backend, name, url)


@contextmanager
def _opening(url: str) -> Iterator[None]:
    """Convert errors of Optuna and of database drivers, such as tables of another version, into one line."""
    try:
        yield
    except (ImportError, RuntimeError, ValueError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        fix = " Run pip install '.[postgresql]'." if "psycopg" in reason else ""
        raise UserError(masked(f"Cannot open --storage {url}: {reason}.{fix}")) from None


def _database(url: str) -> RDBStorage:
    engine: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("postgresql+psycopg"):
        # A server whose database has no encoding would return bytes. A statement that was prepared on one
        # connection of a pooler is missing on the next.
        engine["connect_args"] = {"client_encoding": "utf8", "prepare_threshold": None}
    database = RDBStorage(url, engine_kwargs=engine)
    event.listen(database.engine, "handle_error", _disconnected)
    return database


class _DisconnectedError(Exception):
    """Lost connection. Nobody knows if the database executed the last statement."""


def _disconnected(context: ExceptionContext) -> None:
    """Prevent Optuna from creating a trial again, which it does if only the answer is lost."""
    error = context.sqlalchemy_exception  # None if a signal interrupted a statement
    if error is not None and context.is_disconnect and not context.is_pre_ping:
        raise _DisconnectedError(str(error))


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Convert errors of a storage into one line.

    Raises:
        UserError: the URL is invalid. StorageError: the database is lost, locked, full or corrupt, or
            another process writes the same study.
    """
    try:
        yield
    except UpdateFinishedTrialError:
        raise StorageError(_another_writer(url)) from None
    except (SQLAlchemyError, StorageInternalError, _DisconnectedError) as error:
        cause = (error.__cause__ or error) if isinstance(error, StorageInternalError) else error
        reason = str(cause).splitlines()[0]
        if isinstance(cause, ArgumentError):
            raise UserError(masked(f"--storage {url} is invalid: {reason}.")) from None
        if url.startswith("sqlite:///") and _is_corrupt(Path(url.removeprefix("sqlite:///")), cause):
            raise StorageError(f"{url.removeprefix('sqlite:///')} is corrupt. Restore a backup.") from None
        raise StorageError(
            masked(f"The study storage {url} failed: {reason}. Fix the cause, then {RESUME}.")
        ) from None


def _is_corrupt(file: Path, error: BaseException) -> bool:
    """Return True if a file is not a whole database. Errors of locked and full ones have other types."""
    return type(error) is DatabaseError or "unsupported file format" in str(error) or file.is_dir()


def _another_writer(url: str) -> str:
    return masked(f"Another process writes this study in {url}. Stop one of them, then {RESUME}.")
