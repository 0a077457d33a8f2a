"""A study on a database that fails now and then, and on a machine whose clock is set back."""

import random
import re
from pathlib import Path
from typing import Any

import optuna.storages._in_memory as in_memory
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from prometar.errors import WorkError
from tests.support.databases import open_study
from tests.support.driver import NAME, Back, fail_one_in_fifty, records, run_fake

OPTIONS: dict[str, Any] = {"trials": 3, "epochs": 1}
MOST_COMMANDS = 60


def told(out: Path) -> list[dict[str, Any]]:
    """Records without what the clock says."""
    kept = ("number", "state", "settings", "objective", "epochs")
    return [{key: record[key] for key in kept} for record in records(out)]


def once(out: Path) -> tuple[dict[str, Any] | None, str]:
    """A command's result, or what it says of its failure."""
    try:
        return run_fake(out, **OPTIONS)
    except WorkError as error:
        return None, str(error)


Whole = tuple[dict[str, Any], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def whole(ray_local: str, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """What the study finds when nothing fails: its best trial, and its records."""
    out = tmp_path_factory.mktemp("whole")
    return run_fake(out, **OPTIONS)[0]["selected"], told(out)


def test_a_storage_that_fails_one_call_in_fifty(tmp_path: Path, whole: Whole) -> None:
    failed, out = 0, tmp_path / "flaky"
    found: dict[str, Any] | None = None
    before: list[dict[str, Any]] = []
    fail = fail_one_in_fifty(random.Random(5))
    try:
        for _ in range(MOST_COMMANDS):
            found, said = once(out)
            if found is not None:
                break
            failed += 1
            assert re.fullmatch(r".*disk I/O error.*(re)?run (the same|this) command.*", said)
            kept = records(out)
            assert [record for record in kept if record in before] == before, "a record was lost"
            before = kept
    finally:
        event.remove(Engine, "before_cursor_execute", fail)
    assert found is not None, f"no command in {MOST_COMMANDS} came to the end"
    assert failed
    assert (found["selected"], told(out)) == whole
    states = {t.state.name for t in open_study(f"sqlite:///{out / NAME / 'study.db'}", NAME).trials}
    assert states == {"COMPLETE"}, "none is left running"


def test_a_clock_that_is_set_back_by_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Whole
) -> None:
    """Only a trial's moments are the clock's: all that is measured in seconds is not."""
    monkeypatch.setattr(in_memory, "datetime", Back)
    monkeypatch.setattr(Back, "looks", 0)
    out = tmp_path / "back"
    found, text = run_fake(out, **OPTIONS, max_hours=0.5)
    assert (found["selected"], told(out)) == whole
    assert not re.search(r"\[-|-\d+:", text), "no negative times"
    moments = [(record["started"], record["ended"]) for record in records(out)]
    assert any(ended < started for started, ended in moments), "it was set back"
