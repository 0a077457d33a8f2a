"""What a driver sees of its study is what the next one will read, whatever was written or has failed."""

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
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError, ProgrammingError

from prometar.errors import UserError, WorkError
from tests.support.databases import new_database, open_study
from tune.optimizer import storage as opened
from tune.optimizer.storage import WriteThrough, drive_study, reachable

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


def content(trials: list[FrozenTrial]) -> list[dict[str, Any]]:
    """All there is of trials but ids, and times, which either side takes by itself."""
    left_out = ("_trial_id", "_datetime_start", "datetime_complete")
    return [{key: value for key, value in vars(t).items() if key not in left_out} for t in trials]


def write(study: optuna.Study, storage: WriteThrough, what: str, *given: Any) -> None:
    """One write; one that does not fit the trial's state is none."""
    running = [t.number for t in study.trials if t.state is TrialState.RUNNING]
    if what == "ask":
        study.ask(SPACE)
    elif what == "enqueue":
        study.enqueue_trial({"weight": given[0]}, user_attrs={"origin": "given"})
    elif what == "study attr":
        study.set_user_attr(*given)
    elif not running:
        return
    else:
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


@settings(max_examples=20, deadline=None)
@given(writes=WRITES)
def test_a_driver_sees_what_others_read(writes: list[tuple[Any, ...]]) -> None:
    with TemporaryDirectory() as folder:
        url = new_database(Path(folder))
        drive_study(url, "another")[0].enqueue_trial({})  # so that the storage's ids are not this study's
        study, storage = drive_study(url, "s")
        for what, *given in writes:
            write(study, storage, what, *given)
        storage.keep()
        read = open_study(url, "s")
        again, _ = drive_study(url, "s")
        assert content(study.trials) == content(read.trials) == content(again.trials)
        assert study.user_attrs == read.user_attrs == again.user_attrs
        assert [t.number for t in study.trials] == [t._trial_id for t in study.trials]
        assert len(open_study(url, "another").trials) == 1


def test_what_could_not_be_kept_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, storage = drive_study(f"sqlite:///{tmp_path}/study.db", "s")
    trial = study.ask(SPACE)
    storage.keep()
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
        with pytest.raises(OperationalError, match="disk I/O error"):
            change()
    assert content(study.trials) == before
    assert study.user_attrs == {}


def test_a_trial_is_there_with_all_its_settings_or_not_at_all(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    study, storage = drive_study(url, "s")
    trial = study.ask()
    trial.set_user_attr("origin", "given")
    for name, distribution in SPACE.items():
        assert open_study(url, "s").trials == []
        trial._suggest(name, distribution)
    storage.keep()
    (read,) = open_study(url, "s").trials
    assert read.params == trial.params
    assert read.user_attrs == {"origin": "given"}
    study.ask(SPACE)
    study.ask(SPACE)  # the next is begun when the one before it has been kept
    assert [t.number for t in open_study(url, "s").trials] == [0, 1]


def test_a_tuple_is_read_as_the_next_driver_reads_it(tmp_path: Path) -> None:
    study, storage = drive_study(f"sqlite:///{tmp_path}/study.db", "s")
    number = study.ask().number
    storage.set_trial_user_attr(number, "seeds", (1, 2))
    assert study.trials[number].user_attrs == {"seeds": [1, 2]}


def test_what_another_process_ends_is_one_line(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    study, storage = drive_study(url, "s")
    trial = study.ask(SPACE)
    storage.keep()
    open_study(url, "s").tell(0, 1.0)
    with pytest.raises(WorkError, match=r"another process writes this study in .*: end one"), reachable(url):
        storage.set_trial_state_values(trial.number, TrialState.WAITING)


def test_a_database_that_was_moved_is_said_to_be(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    file = Path(url.removeprefix("sqlite:///"))
    study, _ = drive_study(url, "s")
    file.rename(tmp_path / "elsewhere")
    with pytest.raises(WorkError, match=f"{file} has been moved or removed meanwhile: put"), reachable(url):
        study.set_user_attr("key", 1)


def test_a_trial_is_not_begun_twice_where_the_first_answer_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_database(tmp_path)
    study, storage = drive_study(url, "s")
    dialect = storage._backend._backend.engine.dialect  # type: ignore[attr-defined]
    commit = dialect.do_commit

    def lose_the_answer(connection: Any) -> None:
        commit(connection)
        monkeypatch.setattr(dialect, "do_commit", commit)
        raise sqlite3.OperationalError("server closed the connection")

    monkeypatch.setattr(dialect, "do_commit", lose_the_answer)
    monkeypatch.setattr(dialect, "is_disconnect", lambda *_: True)
    with pytest.raises(WorkError, match=f"{url} failed: server closed.* goes on from here"), reachable(url):
        study.enqueue_trial({"depth": 2})
    assert [t.system_attrs["fixed_params"] for t in open_study(url, "s").trials] == [{"depth": 2}]


def test_of_two_that_claim_a_study_at_once_the_second_sees_the_first(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    storages = [drive_study(url, "s")[1] for _ in range(2)]  # each has been read before either is claimed
    assert [storage.claim("owner", k) for k, storage in enumerate(storages)] == [0, 0]
    assert open_study(url, "s").user_attrs == {"owner": 0}


def test_who_claims_a_study_between_a_look_and_a_claim_is_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_database(tmp_path)
    _, first = drive_study(url, "s")
    _, second = drive_study(url, "s")
    looks, look = [], second._backend.get_study_user_attrs

    def overtaken(study_id: int) -> dict[str, Any]:
        looks.append(look(study_id))
        if len(looks) == 1:
            assert first.claim("owner", "first") == "first"
        return looks[-1]

    monkeypatch.setattr(second._backend, "get_study_user_attrs", overtaken)
    assert second.claim("owner", "second") == "first"
    assert open_study(url, "s").user_attrs == {"owner": "first"}


def test_tables_that_another_process_makes_at_once_are_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = [
        'type "studydirection" already exists',
        "duplicate key\nDETAIL: Key (x)=(y) already exists.",
        "UNIQUE constraint failed: version_info.version_info_id",  # SQLite
    ]

    def made(*given: Any, **more: Any) -> RDBStorage:
        if refusals:
            raise ProgrammingError("CREATE", {}, Exception(refusals.pop()))
        return RDBStorage(*given, **more)

    monkeypatch.setattr(opened, "RDBStorage", made)
    drive_study(new_database(tmp_path), "s")
    assert not refusals


def test_tables_of_another_version_of_optuna_are_one_line(tmp_path: Path) -> None:
    url = new_database(tmp_path)
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("update alembic_version set version_num = 'v3.0.0.d'")
    with pytest.raises(
        UserError, match=f"cannot open the study storage {url}: .*optuna storage upgrade"
    ) as told:
        drive_study(url, "s")
    assert told.value.exit_code == 2


def test_why_a_database_cannot_be_opened_is_its_own_word_not_optuna_s(tmp_path: Path) -> None:
    def fail(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "FROM version_info" in statement:
            raise OperationalError(statement, {}, Exception("server closed the connection"))

    url = new_database(tmp_path)
    event.listen(Engine, "before_cursor_execute", fail)
    try:
        with pytest.raises(WorkError, match="server closed the connection; when it answers again"):
            drive_study(url, "s")
    finally:
        event.remove(Engine, "before_cursor_execute", fail)


def test_a_database_whose_driver_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match=r"cannot open .*psycopg.*: pip install '\.\[postgresql\]'$"):
        drive_study("postgresql+psycopg://u@localhost/d", "x")
