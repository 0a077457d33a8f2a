"""What a driver sees is what the next one reads, whatever was written or has failed."""

import sqlite3
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError

from prometar.errors import StorageError, UserError
from tests.support.databases import new_database, open_study
from tune.store.storage import WriteThrough, open_storage

SPACE = {
    "weight": FloatDistribution(0.1, 10.0, log=True),
    "depth": IntDistribution(1, 12),
    "kind": CategoricalDistribution(("l1", "l2", None)),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-1, 1) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=2),
    max_leaves=3,
)
DONE = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
WRITES = st.lists(
    st.one_of(
        st.tuples(st.just("ask")),
        st.tuples(st.just("enqueue"), st.floats(0.1, 10.0)),
        st.tuples(st.just("report"), st.integers(0, 3), st.integers(1, 5), st.floats(allow_nan=False)),
        st.tuples(st.just("attr"), st.integers(0, 3), st.sampled_from("pq"), JSON),
        st.tuples(st.just("study attr"), st.sampled_from("pq"), JSON),
        st.tuples(st.just("wait"), st.integers(0, 3)),
        st.tuples(st.just("tell"), st.integers(0, 3), st.sampled_from(DONE), st.floats(-1e9, 1e9)),
    ),
    max_size=12,
)


def driven(url: str, name: str = "s") -> tuple[optuna.Study, WriteThrough]:
    storage = open_storage(url, name, ["maximize"])
    return optuna.load_study(storage=storage, study_name=name), storage


def content(trials: list[FrozenTrial]) -> list[dict[str, Any]]:
    """All there is of trials, except IDs, and times, which either side takes by itself."""
    left_out = ("_trial_id", "_datetime_start", "datetime_complete")
    return [{key: value for key, value in vars(t).items() if key not in left_out} for t in trials]


def write(study: optuna.Study, storage: WriteThrough, what: str, *given: Any) -> None:
    """One write. It does nothing if it does not fit the trial's state."""
    running = [t.number for t in study.trials if t.state is TrialState.RUNNING]
    if what == "ask":
        storage.store(study.ask(SPACE).number)
    elif what == "enqueue":
        study.enqueue_trial({"weight": given[0]}, user_attrs={"origin": "given"})
    elif what == "study attr":
        study.set_user_attr(*given)
    elif running:
        number = running[given[0] % len(running)]
        if what == "report":
            storage.set_trial_intermediate_value(number, *given[1:])
        elif what == "attr":
            storage.set_trial_user_attr(number, *given[1:])
        elif what == "wait":
            storage.set_trial_state_values(number, TrialState.WAITING)
        else:
            state, value = given[1:]
            study.tell(number, value if state is TrialState.COMPLETE else None, state=state)


@settings(max_examples=10, deadline=None)
@given(writes=WRITES)
def test_a_driver_sees_what_others_read(writes: list[tuple[Any, ...]]) -> None:
    with TemporaryDirectory() as folder:
        url = new_database(Path(folder))
        driven(url, "another")[0].enqueue_trial({})  # so that IDs are not numbers
        study, storage = driven(url)
        for what, *given in writes:
            write(study, storage, what, *given)
        read, (again, _) = open_study(url), driven(url)
        assert content(study.trials) == content(read.trials) == content(again.trials)
        assert study.user_attrs == read.user_attrs == again.user_attrs
        assert [t.number for t in study.trials] == [t._trial_id for t in study.trials]
        assert len(open_study(url, "another").trials) == 1


def test_what_could_not_be_written_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, storage = driven(new_database(tmp_path))
    trial = study.ask(SPACE)
    storage.store(0)
    before = content(study.trials)

    def lost(*_: object, **__: object) -> None:
        raise OperationalError("UPDATE", {}, Exception("disk I/O error"))

    for name in ("create_new_trial", "set_trial_intermediate_value", "set_trial_user_attr",
                 "set_trial_state_values", "set_study_user_attr"):  # fmt: skip
        monkeypatch.setattr(storage._backend, name, lost)
    for change in (
        lambda: study.enqueue_trial({}),
        lambda: trial.report(1.0, 1),
        lambda: trial.set_user_attr("key", 1),
        lambda: study.set_user_attr("key", 1),
        lambda: study.tell(trial, 1.0),
    ):
        with pytest.raises(StorageError, match=r"failed: .*disk I/O error.* to resume") as caught:
            change()
        assert "\n" not in str(caught.value)
    assert content(study.trials) == before
    assert study.user_attrs == {}


def test_a_trial_is_stored_with_all_its_settings_or_not_at_all(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    study, storage = driven(url)
    trial = study.ask(SPACE)
    trial.set_user_attr("origin", "given")
    assert open_study(url).trials == []
    storage.store(0)
    (read,) = open_study(url).trials
    assert (read.params, read.user_attrs) == (trial.params, {"origin": "given"})


def test_a_trial_is_not_created_twice_if_the_first_answer_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_database(tmp_path)
    study, storage = driven(url)
    dialect = storage._backend.engine.dialect  # type: ignore[attr-defined]
    commit = dialect.do_commit

    def lose_the_answer(connection: Any) -> None:
        commit(connection)
        monkeypatch.setattr(dialect, "do_commit", commit)
        raise sqlite3.OperationalError("server closed the connection")

    monkeypatch.setattr(dialect, "do_commit", lose_the_answer)
    monkeypatch.setattr(dialect, "is_disconnect", lambda *_: True)
    with pytest.raises(StorageError, match=rf"{url} failed: .*server closed.* to resume"):
        study.enqueue_trial({"depth": 2})
    assert [t.system_attrs["fixed_params"] for t in open_study(url).trials] == [{"depth": 2}]


def test_a_trial_that_another_process_ended_is_one_line(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    study, storage = driven(url)
    study.ask(SPACE)
    storage.store(0)
    open_study(url).tell(0, 1.0)
    with pytest.raises(StorageError, match=f"Another process writes this study in {url}"):
        storage.set_trial_state_values(0, TrialState.WAITING)


def test_a_lost_file_is_one_line(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    study, _ = driven(url)
    (tmp_path / "study.db").rename(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match=r"study.db failed: .* to resume"):
        study.set_user_attr("key", 1)


def test_a_corrupt_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(StorageError, match=r"is corrupt\. Restore a backup"):
        driven(f"sqlite:///{tmp_path}/study.db")


@pytest.mark.parametrize("url", ["nonsense", "no_such_kind://host/db", "redis://host/db"])
def test_a_wrong_url_is_one_line(url: str) -> None:
    with pytest.raises(UserError, match=f"--storage {url}") as caught:
        driven(url)
    assert caught.value.exit_code == 2


def test_an_unreachable_database_is_one_line() -> None:
    with pytest.raises(StorageError, match=r"storage sqlite:////no/such/folder/.* failed: "):
        driven("sqlite:////no/such/folder/study.db")


def test_tables_of_another_version_of_optuna_are_one_line(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("update alembic_version set version_num = 'v3.0.0.d'")
    with pytest.raises(UserError, match=rf"Cannot open --storage {url}: .*optuna storage upgrade"):
        driven(url)


def test_the_cause_is_the_database_s_own_text(tmp_path: Path) -> None:
    def fail(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "FROM version_info" in statement:
            raise OperationalError(statement, {}, Exception("server closed the connection"))

    url = new_database(tmp_path)
    event.listen(Engine, "before_cursor_execute", fail)
    try:
        with pytest.raises(StorageError, match=r"server closed the connection"):
            driven(url)
    finally:
        event.remove(Engine, "before_cursor_execute", fail)


def test_a_missing_driver_and_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(
        UserError, match=r"Cannot open .*psycopg.* Run pip install '\.\[postgresql\]'"
    ) as caught:
        driven("postgresql+psycopg://me:secret@localhost/d")
    assert "secret" not in str(caught.value)
