"""Optuna storage of a study, and its errors in one line each."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from sqlalchemy import create_engine, event, inspect
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import ArgumentError, DatabaseError, SQLAlchemyError

from prometar.errors import StorageError, UserError
from prometar.io.stores import masked

RESUME = "rerun the same command to resume"
SQLITE = "sqlite:///"


def open_storage(url: str) -> RDBStorage:
    """Open a database. Create Optuna's tables if it is empty.

    Raises:
        UserError: the URL is invalid, a driver is missing, or another program or version made the tables.
    """
    engine: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("postgresql+psycopg"):
        # A server whose database has no encoding would return bytes. A statement that was prepared on one
        # connection of a pooler is missing on the next.
        engine["connect_args"] = {"client_encoding": "utf8", "prepare_threshold": None}
    try:
        if url.startswith(SQLITE):
            tables = inspect(create_engine(url)).get_table_names()
            if tables and "version_info" not in tables:
                raise UserError(f"--storage {url} contains tables of another program. Choose another file.")
        storage = RDBStorage(url, engine_kwargs=engine)
    except (ImportError, RuntimeError, ValueError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        missing = isinstance(error, ImportError) and url.startswith("postgresql")
        fix = " Run pip install '.[postgresql]'." if missing else ""
        raise UserError(masked(f"Cannot open --storage {url}: {reason}.{fix}")) from None

    def disconnected(context: ExceptionContext) -> None:
        """Prevent Optuna from creating a trial again, which it does if only the answer is lost."""
        error = context.sqlalchemy_exception  # None if a signal interrupted a statement
        if error is not None and context.is_disconnect and not context.is_pre_ping:
            raise _failed(url, error)

    event.listen(storage.engine, "handle_error", disconnected)
    return storage


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Convert errors of a database into one line.

    Raises:
        UserError: the URL is invalid. StorageError: the database is lost, locked, full or corrupt, or
            another process writes the same study.
    """
    try:
        yield
    except UpdateFinishedTrialError:
        raise another_writer(url) from None
    except ArgumentError as error:
        raise UserError(masked(f"--storage {url} is invalid: {str(error).splitlines()[0]}.")) from None
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = (error.__cause__ or error) if isinstance(error, StorageInternalError) else error
        if url.startswith(SQLITE) and type(cause) is DatabaseError:  # locked and full ones have other types
            raise StorageError(f"{url.removeprefix(SQLITE)} is corrupt. Restore a backup.") from None
        raise _failed(url, cause) from None


def _failed(url: str, error: BaseException) -> StorageError:
    reason = str(error).splitlines()[0]
    return StorageError(masked(f"The study storage {url} failed: {reason}. Fix the cause, then {RESUME}."))


def another_writer(url: str) -> StorageError:
    """Return the error of a study that two processes write."""
    return StorageError(
        masked(f"Another process writes this study in {url}. Stop one of them, then {RESUME}.")
    )
