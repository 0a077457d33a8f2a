"""Optuna storage of a study, with one-line errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from sqlalchemy import create_engine, event, inspect, make_url
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import ArgumentError, DatabaseError, SQLAlchemyError

from prometar.errors import FIX_AND_RESUME, InfrastructureError, UserError
from prometar.io.stores import masked

SQLITE = "sqlite:///"


def open_storage(url: str) -> RDBStorage:
    """Open a database. Create those of Optuna's tables that are missing.

    Raises:
        UserError: the database is in memory, the database driver is missing, or the tables are those of
            another program or of another version of Optuna.
        ArgumentError: the URL is invalid.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database in {None, "", ":memory:"}:
        raise UserError(
            f"--storage {url} is a database in memory, which is lost when the command ends. "
            "Use sqlite:///FILE, or omit --storage."
        )
    engine_kwargs: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("postgresql+psycopg"):
        # Without client_encoding, psycopg returns bytes if the database uses SQL_ASCII. prepare_threshold
        # turns off prepared statements, which some connection poolers do not support.
        engine_kwargs["connect_args"] = {"client_encoding": "utf8", "prepare_threshold": None}
    try:
        if url.startswith(SQLITE) and _has_foreign_tables(url):
            raise UserError(f"--storage {url} contains tables of another program. Choose another file.")
        storage = RDBStorage(url, engine_kwargs=engine_kwargs)
    except (ImportError, RuntimeError, ValueError) as error:
        reason = _first_line(error.__cause__ or error)
        if not isinstance(error, ImportError):
            fix = ""
        elif url.startswith("postgresql"):
            fix = " Run pip install '.[postgresql]'."
        else:
            fix = " Use sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME."
        raise UserError(masked(f"Cannot open --storage {url}: {reason}.{fix}")) from None

    def raise_if_disconnected(context: ExceptionContext) -> None:
        # Otherwise, Optuna would repeat the statement, although the database may already have executed it.
        error = context.sqlalchemy_exception  # None if a signal interrupted the statement
        if error is not None and context.is_disconnect and not context.is_pre_ping:
            raise _storage_error(url, error)

    event.listen(storage.engine, "handle_error", raise_if_disconnected)
    return storage


def _has_foreign_tables(url: str) -> bool:
    """Return True if a SQLite database contains tables of another program.

    If the creation of Optuna's tables was interrupted, its table "version_info" may be missing.
    """
    tables = inspect(create_engine(url)).get_table_names()
    if "version_info" in tables:
        return False
    return not all(table.startswith(("stud", "trial")) for table in tables)


@contextmanager
def convert_db_errors(url: str) -> Iterator[None]:
    """Convert database errors to one-line errors.

    Raises:
        UserError: the URL is invalid.
        InfrastructureError: the database is unreachable, locked, full or corrupt, or has another writer.
    """
    try:
        yield
    except UpdateFinishedTrialError:
        raise second_writer_error(url) from None
    except ArgumentError as error:
        raise UserError(masked(f"--storage {url} is invalid: {_first_line(error)}.")) from None
    except (SQLAlchemyError, StorageInternalError) as error:
        cause: BaseException = error
        if isinstance(error, StorageInternalError) and error.__cause__ is not None:
            cause = error.__cause__  # the error of the database, which Optuna has wrapped
        # DatabaseError itself means corrupt, and its subclass OperationalError means locked or full.
        if url.startswith(SQLITE) and type(cause) is DatabaseError:
            path = unquote(url.removeprefix(SQLITE))
            raise InfrastructureError(f"{path} is corrupt. Restore a backup.") from None
        raise _storage_error(url, cause) from None


def _storage_error(url: str, error: BaseException) -> InfrastructureError:
    """Return the error for a statement that the database did not execute."""
    reason = _first_line(error)
    return InfrastructureError(masked(f"The study storage {url} failed: {reason}. {FIX_AND_RESUME}"))


def _first_line(error: BaseException) -> str:
    """Return the first line of an error's message, of any length."""
    return str(error).splitlines()[0]


def second_writer_error(url: str) -> InfrastructureError:
    """Return the error for a study to which two processes write."""
    problem = masked(f"Another process is writing to this study ({url}).")
    return InfrastructureError(f"{problem} Stop one of the processes, then rerun the same command to resume.")
