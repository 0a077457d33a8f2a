"""The trial store if its process dies between any two statements, without Ray."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.engine import Engine

from tests.support.databases import new_database, open_store, open_study, run, sample
from tests.support.processes import ROOT

SPACE = """
regularizer.kind: {type: choice, choices: [l1, l2, cosine, none]}
regularizer.text_weight: {type: float, low: 0.5, high: 200, log: true}
regularizer.image_weight: {type: float, low: 0.2, high: 100, log: true}
"""
KINDS = "regularizer.kind: {type: choice, choices: [l1, l2, none]}"


class Killed(BaseException):
    """Death of the process: nothing handles it."""


def killed_after(count: int, work: Callable[[], object]) -> bool:
    """Do work until `count` statements have been executed. Return True if it was killed."""
    left = count

    def die(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed

    event.listen(Engine, "before_cursor_execute", die)
    try:
        work()
    except Killed:
        return True
    finally:
        event.remove(Engine, "before_cursor_execute", die)
    return False


@pytest.mark.parametrize(("space", "trials"), [(SPACE, 3), (KINDS, 5)], ids=["settings", "repetitions"])
def test_no_trial_is_lost_or_repeated_at_any_kill(tmp_path: Path, space: str, trials: int) -> None:
    def finish(folder: Path) -> list[dict[str, Any]]:
        store = open_store(folder, space=space, trials=trials)
        run(store, lambda settings: 50.0 + len(str(settings["regularizer.kind"])))
        return [{**trial.settings, "state": trial.state} for trial in store.ended_trials]

    whole = finish(tmp_path / "whole")
    folder = tmp_path / "killed"
    count = 0
    while killed_after(count, lambda: finish(folder)):
        assert finish(folder) == whole, f"killed after {count} statements"
        shutil.rmtree(folder)
        count += 11  # of a few hundred, in and between transactions
    assert count > 60
    assert {t.state for t in open_study(f"sqlite:///{folder}/s/study.db").trials} == {TrialState.COMPLETE}


def test_killed_by_a_signal_while_trials_run(tmp_path: Path) -> None:
    url = new_database(tmp_path / "s")
    command = [sys.executable, "-m", "tests.support.store_process", str(tmp_path), url, "2", "3"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hanging 2 3\n"
        process.kill()
    trials = open_study(url).trials
    assert [t.state.name for t in trials] == ["COMPLETE", "COMPLETE", "RUNNING", "RUNNING"]
    assert run(open_store(tmp_path, trials=4)) == [(number, trials[number].params) for number in (2, 3)]
    assert {t.state for t in open_study(url).trials} == {TrialState.COMPLETE}


def test_open_settings_of_an_enqueued_trial_are_stored_with_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("regularizer.kind: cosine")
    store = open_store(tmp_path, space=SPACE, enqueue=[file])
    run(store, most=1, value=lambda settings: 50.0)
    number, settings = sample(store.ask())
    assert (number, settings["regularizer.kind"], len(settings)) == (1, "cosine", 3)
    assert sample(open_store(tmp_path, space=SPACE, enqueue=[file]).ask()) == (1, settings)
