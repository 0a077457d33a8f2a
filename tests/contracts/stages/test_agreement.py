"""A study whose database is lost is refused, and made anew from its records: same trials, same next draws."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna import delete_study
from optuna.storages import RDBStorage
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from tune.optimizer.ask_tell import Asked, Memory
from tune.optimizer.rebuild import rebuild
from tune.optimizer.samplers import STARTUP_TRIALS
from tune.optimizer.trial_counts import REPEAT
from tune.optimizer.trial_schema import record_of
from tune.results.goals import parse_bounds
from tune.results.reader import read_trials
from tune.results.schema import TRIAL
from tune.results.writer import StudyFolder
from tune.stages.agreement import require_agreement
from tune.study_spec import StudySpec

from prometar.errors import UserError, WorkError
from tests.support.databases import open_study
from tests.support.driver import NAME, small_spec
from tests.support.fake_trial import curve
from tune.space.spaces import parse_space

EPOCHS = 3
CONDITIONAL = """
regularizer.kind: {type: choice, choices: [l1, cosine]}
regularizer.text_weight: {type: float, low: 0.5, high: 200, log: true, when: {regularizer.kind: [l1]}}
"""


def memory_of(spec: StudySpec, folder: StudyFolder) -> Memory:
    return Memory(folder.storage, NAME, spec, reference=spec.reference(), epochs=EPOCHS)


def run(memory: Memory, asked: Asked, *, failing: bool = False) -> None:
    for epoch in range(1, EPOCHS + 1):
        value = curve(asked.settings, epoch)
        result: dict[str, Any] = {
            "epoch": epoch, "objective": value, "base": value + 1, "new": value - 1, "seconds": 2.0 * epoch,
            "finished": epoch == EPOCHS, "cpus": 1.0, "gpus": 0.0,
            "runs": [{"dataset": "textures", "seed": 3, "objective": value}],
        }  # fmt: skip
        if failing:
            memory.fail(asked.number, "its worker was killed")
        if memory.observe(asked.number, result):
            return


def recorded(memory: Memory, folder: StudyFolder, *, trials: int) -> None:
    """Trials that are run to their ends and written; the database is closed."""
    for _ in range(trials):
        asked = memory.next(100)
        assert asked is not None
        run(memory, asked)
    for trial in memory.ended():
        TRIAL.write(folder.record(trial.number), trial)
    memory.close()
    folder.describe(small_spec(epochs=EPOCHS), {})


@pytest.fixture(scope="module", params=["one goal", "two goals", "pruned", "bounded"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudySpec]:
    """A study of trials: one failed, two were enqueued, one was interrupted; and their records."""
    changes: dict[str, Any] = {
        "one goal": {},
        "two goals": {"goals": ("objective", "seconds")},
        "pruned": {"pruner": "asha"},
        "bounded": {"bounds": parse_bounds(["base=60"], ["seconds=100"])},
    }[request.param]
    asked_for = small_spec(epochs=EPOCHS, **changes)
    folder = StudyFolder(tmp_path_factory.mktemp("made"), NAME)
    folder.path.mkdir()
    memory = memory_of(asked_for, folder)
    enqueued = {"regularizer.kind": "l2", "regularizer.text_weight": 3.0, "regularizer.image_weight": 2.0}
    memory.enqueue([enqueued, enqueued | {"regularizer.kind": "cosine"}], "enqueued")
    for _ in range(STARTUP_TRIALS + 2):
        asked = memory.next(100)
        assert asked is not None
        run(memory, asked, failing=asked.number == 4)
    interrupted = memory.next(100)
    assert interrupted is not None
    folder.trial(interrupted.number).mkdir(parents=True)
    for trial in memory.ended():
        TRIAL.write(folder.record(trial.number), trial)
    memory.close()
    folder.describe(asked_for, {})
    return folder.path, asked_for


@pytest.fixture
def study(made: tuple[Path, StudySpec], tmp_path: Path) -> tuple[StudyFolder, StudySpec]:
    """A copy of it."""
    shutil.copytree(made[0], tmp_path / NAME)
    return StudyFolder(tmp_path, NAME), made[1]


def told(memory: Memory) -> list[tuple[object, ...]]:
    """All of the ended trials that a sampler, a pruner or a report looks at.

    Not the moments: the database and the memory of the process that wrote the records take their own.
    """
    return [
        (
            t.values,
            t.distributions,
            t.intermediate_values,
            t.constraints,
            replace(record_of(t), started=None, ended=None),
        )
        for t in memory.trials()
        if t.state.is_finished()
    ]


def test_a_lost_database_is_made_anew(study: tuple[StudyFolder, StudySpec]) -> None:
    folder, spec = study
    before = memory_of(spec, folder)
    trials, number = told(before), before.next(100)
    before.close()
    (folder.path / "study.db").unlink()

    lost = f"has records of {len(trials)} trials, and its database .*study.db lacks {len(trials)} of them"
    with pytest.raises(UserError, match=f"{lost}.*: restore the database, or rebuild it with --from-records"):
        require_agreement(folder, folder.storage, spec, from_records=False)
    assert not (folder.path / "study.db").exists(), "a refusal writes nothing"

    (folder.path / "trials" / "20261128").mkdir()  # a copy that somebody has put there
    note = require_agreement(folder, folder.storage, spec, from_records=True)
    assert note == f"the database has been rebuilt from {len(trials)} records"
    after = memory_of(spec, folder)
    assert told(after) == trials
    moments = [(r.started, r.ended) for r in read_trials(folder.path)]
    assert [(t.started, t.ended) for t in after.ended()] == moments
    asked = after.next(100)
    assert asked is not None
    assert number is not None
    assert asked.number == number.number + 1, "an interrupted trial has no record; its number is gone"
    after.close()
    assert require_agreement(folder, folder.storage, spec, from_records=True) == ""


def test_a_folder_that_was_renamed_is_told_its_name(study: tuple[StudyFolder, StudySpec]) -> None:
    folder, spec = study
    renamed = StudyFolder(folder.path.parent, "other")
    folder.path.rename(renamed.path)
    for from_records in (False, True):
        with pytest.raises(
            UserError, match=f"other/study.db holds the study {NAME}: give the folder this name"
        ):
            require_agreement(renamed, renamed.storage, spec, from_records=from_records)


def _garble(database: Path) -> None:
    database.write_bytes(b"no database at all" * 1000)


def _garble_header(database: Path) -> None:
    with database.open("r+b") as file:
        file.seek(40)
        file.write(b"Z" * 60)


def _garble_trials(database: Path) -> None:
    """The pages of trials, as a disk does it: the list of studies can still be read."""
    with closing(sqlite3.connect(database)) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name LIKE 'trial%' AND rootpage > 0"
        pages = [page for (page,) in connection.execute(query)]
        [size] = connection.execute("PRAGMA page_size").fetchone()
    with database.open("r+b") as file:
        for page in pages:
            file.seek((page - 1) * size)
            file.write(b"Z" * size)


def _replace_by_folder(database: Path) -> None:
    database.unlink()
    database.mkdir()


@pytest.mark.parametrize("damage", [_garble, _garble_header, _garble_trials, _replace_by_folder])
def test_a_damaged_database_is_lost_too(
    study: tuple[StudyFolder, StudySpec], damage: Callable[[Path], None]
) -> None:
    folder, spec = study
    damage(folder.path / "study.db")
    with pytest.raises(WorkError, match=r"study\.db is damaged: move it away"):
        memory_of(spec, folder)
    with pytest.raises(UserError, match="restore the database, or rebuild it with --from-records"):
        require_agreement(folder, folder.storage, spec, from_records=False)
    note = require_agreement(folder, folder.storage, spec, from_records=True)
    assert note.endswith("what was there is now study.db.before-1")
    after = memory_of(spec, folder)
    assert len(after.ended()) == len(read_trials(folder.path))
    after.close()


def test_the_next_draws_are_the_same(study: tuple[StudyFolder, StudySpec]) -> None:
    folder, spec = study
    before = memory_of(spec, folder)
    while before.num_interrupted:
        asked = before.next(100)
        assert asked is not None
        before.fail(asked.number, "ended by the test")
    for trial in before.ended():
        TRIAL.write(folder.record(trial.number), trial)
    expected = [before.next(100) for _ in range(3)]
    before.close()
    (folder.path / "study.db").unlink()
    require_agreement(folder, folder.storage, spec, from_records=True)
    after = memory_of(spec, folder)
    assert [after.next(100) for _ in range(3)] == expected
    after.close()


@pytest.mark.parametrize("damage", [Path.unlink, _garble])
def test_without_a_description_nothing_is_rebuilt(
    study: tuple[StudyFolder, StudySpec], damage: Callable[[Path], None]
) -> None:
    folder, spec = study
    damage(folder.path / "study.db")
    (folder.path / "study.yaml").unlink()
    before = {path: path.read_bytes() for path in folder.path.rglob("*.*")}
    with pytest.raises(UserError, match=r"holds records without their study\.yaml: restore it"):
        require_agreement(folder, folder.storage, spec, from_records=True)
    assert {path: path.read_bytes() for path in folder.path.rglob("*.*")} == before


def test_what_was_enqueued_in_part_is_known_again(tmp_path: Path) -> None:
    """Also of what the drawn settings made no use of."""
    conditional = parse_space("conditional", CONDITIONAL)
    spec, folder = small_spec(epochs=EPOCHS, space=conditional), StudyFolder(tmp_path, NAME)
    folder.path.mkdir()
    given = [{"regularizer.kind": "cosine", "regularizer.text_weight": 5.0}]
    memory = memory_of(spec, folder)
    memory.enqueue(given, "enqueued")
    recorded(memory, folder, trials=2)
    (folder.path / "study.db").unlink()
    require_agreement(folder, folder.storage, spec, from_records=True)
    rebuilt = memory_of(spec, folder)
    assert [trial.origin for trial in rebuilt.ended()] == ["released", "enqueued"]
    assert rebuilt.enqueue(given, "enqueued") == 0
    rebuilt.close()


def test_what_was_forgiven_and_how_long_was_searched_is_known_again(tmp_path: Path) -> None:
    """As where a first command failed for a cause that was then mended."""
    spec, folder = small_spec(epochs=EPOCHS), StudyFolder(tmp_path, NAME)
    folder.path.mkdir()
    first = memory_of(spec, folder)
    for _ in range(3):
        asked = first.next(10)
        assert asked is not None
        first.fail(asked.number, "no luck")
    first.searched(600.0)
    first.close()
    second = memory_of(spec, folder)
    folder.describe(spec, {}, forgiven=second.forgiven, seconds_searched=second.seconds_searched)
    for _ in range(2):
        asked = second.next(10)
        assert asked is not None
        run(second, asked)
    for trial in second.ended():
        folder.trial(trial.number).mkdir(parents=True)
        TRIAL.write(folder.record(trial.number), trial)
    second.close()
    (folder.path / "study.db").unlink()
    require_agreement(folder, folder.storage, spec, from_records=True)
    again = memory_of(spec, folder)
    assert again.forgiven == second.forgiven == {0, 1, 2}
    assert again.num_done == 2
    assert again.seconds_searched == 600.0
    again.close()


def test_what_a_shared_storage_still_holds_is_not_replaced(
    study: tuple[StudyFolder, StudySpec], tmp_path: Path
) -> None:
    """As after an older backup was restored."""
    folder, spec = study
    shared = f"sqlite:///{tmp_path}/shared.db"
    memory = memory_of(spec, folder)
    kept = memory.ended()
    memory.close()
    rebuild(shared, folder.name, kept[:1], spec, at_least=1)
    with pytest.raises(UserError, match=f"still holds a study {folder.name}, with other trials: remove it"):
        require_agreement(folder, shared, spec, from_records=True)
    assert len(open_study(shared, folder.name).trials) == 1
    delete_study(study_name=folder.name, storage=shared)
    require_agreement(folder, shared, spec, from_records=True)
    assert require_agreement(folder, shared, spec, from_records=False) == ""


def test_no_trial_is_rebuilt_twice_where_the_database_s_answer_is_lost(
    study: tuple[StudyFolder, StudySpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, spec = study
    shared, commit = f"sqlite:///{tmp_path}/shared.db", SQLiteDialect_pysqlite.do_commit
    RDBStorage(shared)  # its tables

    def lose_the_answer(dialect: SQLiteDialect_pysqlite, connection: Any) -> None:
        commit(dialect, connection)
        if connection.execute("select count(*) from trials").fetchone()[0] == 2:
            monkeypatch.setattr(SQLiteDialect_pysqlite, "do_commit", commit)
            raise sqlite3.OperationalError("server closed the connection")

    memory = memory_of(spec, folder)
    kept = memory.ended()[:3]
    memory.close()
    monkeypatch.setattr(SQLiteDialect_pysqlite, "do_commit", lose_the_answer)
    monkeypatch.setattr(SQLiteDialect_pysqlite, "is_disconnect", lambda *_: True)
    with pytest.raises(WorkError, match="server closed the connection; when it answers again"):
        rebuild(shared, folder.name, kept, spec, at_least=3)
    assert len(open_study(shared, folder.name).trials) == 2


def test_another_studys_database_is_refused_and_put_aside(
    study: tuple[StudyFolder, StudySpec], tmp_path: Path
) -> None:
    """As after a start-over: trials of the same numbers, with other settings."""
    folder, spec = study
    database = folder.path / "study.db"
    database.unlink()
    other = small_spec(epochs=EPOCHS, seed=99)
    memory = memory_of(other, folder)
    for _ in range(2):
        asked = memory.next(100)
        assert asked is not None
        run(memory, asked)
    memory.close()
    content = database.read_bytes()
    with pytest.raises(UserError, match="or has others in their place"):
        require_agreement(folder, folder.storage, spec, from_records=False)
    assert database.read_bytes() == content
    earlier = folder.path / "study.db.before-2"  # and before-1 has been removed
    earlier.write_text("what was lost before")
    note = require_agreement(folder, folder.storage, spec, from_records=True)
    assert note.endswith("what was there is now study.db.before-1")
    assert (folder.path / "study.db.before-1").read_bytes() == content
    assert earlier.read_text() == "what was lost before"
    assert require_agreement(folder, folder.storage, spec, from_records=False) == ""


def test_a_whole_study_is_left_alone(study: tuple[StudyFolder, StudySpec]) -> None:
    folder, spec = study
    content = (folder.path / "study.db").read_bytes()
    assert require_agreement(folder, folder.storage, spec, from_records=False) == ""
    assert require_agreement(folder, folder.storage, spec, from_records=True) == ""
    assert (folder.path / "study.db").read_bytes() == content


def test_repeats_leave_gaps_that_count_for_nothing(tmp_path: Path) -> None:
    spec = small_spec(epochs=EPOCHS)
    folder = StudyFolder(tmp_path, NAME)
    folder.path.mkdir()
    memory = memory_of(spec, folder)
    recorded(memory, folder, trials=3)
    shutil.rmtree(folder.trial(1))  # as where trial 1 only repeated settings, and was not run
    (folder.path / "study.db").unlink()
    require_agreement(folder, folder.storage, spec, from_records=True)
    rebuilt = memory_of(spec, folder)
    assert [trial.number for trial in rebuilt.trials()] == [0, 2]
    assert [record.number for record in read_trials(folder.path)] == [0, 2]
    assert all(REPEAT not in trial.user_attrs for trial in rebuilt.trials())
    rebuilt.close()
