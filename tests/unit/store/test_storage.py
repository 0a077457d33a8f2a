"""Database of a study: each error is one line."""

import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError

from prometar.errors import InfrastructureError, PrometarError, UserError
from tests.support.databases import NAME, new_database, open_store, open_study, report, study_config
from tune.records.folder import StudyFolder
from tune.store.storage import convert_db_errors, open_storage
from tune.store.trial_store import TrialStore, open_trial_store


def create_study(url: str) -> None:
    """Create an Optuna study, with the one-line errors of studies."""
    with convert_db_errors(url):
        optuna.create_study(storage=open_storage(url))


def lose_answer_of_next_commit(store: TrialStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the database execute the next commit, but close the connection before it answers."""
    dialect = store._storage.engine.dialect  # type: ignore[attr-defined]
    commit = dialect.do_commit

    def commit_and_disconnect(connection: Any) -> None:
        commit(connection)
        monkeypatch.setattr(dialect, "do_commit", commit)
        raise sqlite3.OperationalError("server closed the connection")

    monkeypatch.setattr(dialect, "do_commit", commit_and_disconnect)
    monkeypatch.setattr(dialect, "is_disconnect", lambda *_: True)


def test_a_lost_answer_creates_no_second_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = new_database(tmp_path / NAME)

    def create_trial() -> None:
        with open_trial_store(study_config(tmp_path), StudyFolder(tmp_path / NAME), {}) as store:
            sampled = store._sample_next([])
            assert sampled is not None
            lose_answer_of_next_commit(store, monkeypatch)
            store._create(sampled)

    with pytest.raises(InfrastructureError, match=rf"{url} failed: .*server closed.* to resume") as caught:
        create_trial()
    assert "\n" not in str(caught.value)
    assert [trial.state for trial in open_study(url).trials] == [TrialState.RUNNING]


def test_a_second_process_that_creates_the_same_trial_is_refused(tmp_path: Path) -> None:
    url = new_database(tmp_path / NAME)
    first = open_store(tmp_path, url=url)
    second = open_store(tmp_path, url=url)
    sampled = second._sample_next([])
    assert sampled is not None

    first.ask()
    with pytest.raises(InfrastructureError, match=r"Another process is writing to .*sqlite.* resume"):
        second._create(sampled)


def test_a_report_on_a_trial_that_another_process_has_ended_is_refused(tmp_path: Path) -> None:
    url = new_database(tmp_path / NAME)
    store = open_store(tmp_path, url=url)
    trial = store.ask()
    assert trial is not None

    open_study(url).tell(0, 1.0)
    expected = rf"Another process is writing to this study \({url}"
    with pytest.raises(InfrastructureError, match=expected), convert_db_errors(url):
        store.report(0, report(trial))


def test_a_lost_file_is_one_line(tmp_path: Path) -> None:
    def lose_database() -> None:
        with open_trial_store(study_config(tmp_path), StudyFolder(tmp_path / NAME), {}) as store:
            (tmp_path / NAME / "study.db").rename(tmp_path / "elsewhere")
            store.ask()

    with pytest.raises(InfrastructureError, match=r"study.db failed: .* to resume"):
        lose_database()


def write_text(path: Path) -> None:
    path.write_bytes(b"not a database" * 1000)


def write_database_of_songs(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("create table songs (name)")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_text, r"is corrupt\. Restore a backup"),
        (write_database_of_songs, "another program"),
    ],
    ids=["text", "songs"],
)
def test_a_file_of_another_program_is_refused_in_one_line_and_does_not_change(
    write: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "study.db"
    write(path)
    content = path.read_bytes()

    with pytest.raises(PrometarError, match=message) as caught:
        create_study(f"sqlite:///{path}")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


def test_a_folder_in_place_of_the_database_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    path.mkdir()
    with pytest.raises(PrometarError, match="failed: ") as caught:
        create_study(f"sqlite:///{path}")
    assert "\n" not in str(caught.value)
    assert path.is_dir()


def test_a_database_is_completed_if_its_creation_was_interrupted(tmp_path: Path) -> None:
    """Optuna creates its tables one by one."""
    with closing(sqlite3.connect(tmp_path / "study.db")) as database:
        database.execute("create table studies (study_id integer primary key, study_name varchar(512))")
    url = f"sqlite:///{tmp_path}/study.db"

    create_study(url)

    assert len(optuna.get_all_study_names(url)) == 1


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("nonsense", UserError),
        ("no_such_kind://host/db", UserError),
        ("redis://host/db", UserError),
        ("sqlite:////no/such/folder/study.db", InfrastructureError),
    ],
    ids=["no-url", "unknown-database", "redis", "missing-folder"],
)
def test_a_database_that_cannot_be_reached_is_one_line(url: str, kind: type[PrometarError]) -> None:
    with pytest.raises(kind, match=f"storage {url}") as caught:
        create_study(url)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite+pysqlite://"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    """Such a database is lost when the process ends, so no trial could be resumed."""
    with pytest.raises(UserError, match=r"is a database in memory, .* Use sqlite:///FILE"):
        create_study(url)


def test_tables_of_another_version_of_optuna_are_one_line(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    with sqlite3.connect(tmp_path / "study.db") as database:  # commits at its end
        database.execute("update alembic_version set version_num = 'v3.0.0.d'")

    with pytest.raises(UserError, match=rf"Cannot open --storage {url}: .*optuna storage upgrade"):
        create_study(url)


def test_an_error_contains_the_message_of_the_database(tmp_path: Path) -> None:
    def fail(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "FROM version_info" in statement:
            raise OperationalError(statement, {}, Exception("server closed the connection"))

    url = new_database(tmp_path)
    event.listen(Engine, "before_cursor_execute", fail)
    try:
        with pytest.raises(InfrastructureError, match=r"server closed the connection"):
            create_study(url)
    finally:
        event.remove(Engine, "before_cursor_execute", fail)


def test_a_missing_driver_is_named_with_its_installation_and_without_the_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    expected = r"Cannot open .*psycopg.* Run pip install '\.\[postgresql\]'"
    with pytest.raises(UserError, match=expected) as caught:
        create_study("postgresql+psycopg://me:secret@localhost/d")
    assert "secret" not in str(caught.value)
