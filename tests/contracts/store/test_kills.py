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

from tests.support.databases import new_database, open_store, open_study, run
from tests.support.processes import ROOT
from tune.store import trial_store
from tune.store.samplers import STARTUP_TRIALS
from tune.store.storage import open_storage
from tune.store.trial_store import REPEAT, PendingTrial

SPACE = """
regularizer.kind: {type: choice, choices: [l1, l2, cosine, none]}
regularizer.text_weight: {type: float, low: 0.5, high: 200, log: true}
regularizer.image_weight: {type: float, low: 0.2, high: 100, log: true}
"""
START = {"regularizer.kind": "l1", "regularizer.text_weight": 50.0, "regularizer.image_weight": 20.0}
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
def test_no_trial_is_lost_or_repeated_wherever_the_process_dies(
    tmp_path: Path, space: str, trials: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_store, "REDRAWS", 3)  # each one is three transactions

    def finish(folder: Path) -> list[dict[str, Any]]:
        with open_store(folder, space=space, trials=trials) as store:
            run(store, lambda settings: 50.0 + len(str(settings["regularizer.kind"])))
            return [{**trial.settings, "state": trial.state} for trial in store.trials()]

    whole = finish(tmp_path / "whole")
    folder, count = tmp_path / "killed", 0
    while killed_after(count, lambda: finish(folder)):
        assert finish(folder) == whole, f"killed after {count} statements"
        shutil.rmtree(folder)
        count += 11  # of a few hundred, in and between transactions
    assert count > 60
    states = {t.state for t in open_study(f"sqlite:///{folder}/s/study.db").trials}
    assert states <= {TrialState.COMPLETE, TrialState.FAIL}


def test_killed_by_a_signal_while_trials_run(tmp_path: Path) -> None:
    url = new_database(tmp_path / "s")
    command = [sys.executable, "-m", "tests.support.store_process", str(tmp_path), url, "2", "3"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hanging 2 3\n"
        process.kill()
    trials = open_study(url).trials
    assert [t.state.name for t in trials] == ["COMPLETE", "COMPLETE", "RUNNING", "RUNNING"]
    with open_store(tmp_path, trials=4) as store:
        assert run(store) == [PendingTrial(number, trials[number].params) for number in (2, 3)]
    assert {t.state for t in open_study(url).trials} == {TrialState.COMPLETE}


def test_killed_after_the_study_was_created(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    open_storage(f"sqlite:///{tmp_path}/s/study.db", "s", ["maximize"])
    assert open_store(tmp_path, space=SPACE).ask() == PendingTrial(0, START)


@pytest.mark.parametrize("num_ended", [0, 1, STARTUP_TRIALS + 1])
def test_killed_while_settings_were_sampled(tmp_path: Path, num_ended: int) -> None:
    store = open_store(tmp_path, space=SPACE)
    run(store, lambda settings: 50.0 + settings["regularizer.text_weight"] / 10, most=num_ended)
    store.close()
    ranges, whole = store._space.ranges, (tmp_path / "s" / "study.db").read_bytes()
    found = []
    for num_sampled in range(len(ranges) + 1):
        (tmp_path / "s" / "study.db").write_bytes(whole)
        trial = open_store(tmp_path, space=SPACE)._start()
        assert trial is not None
        sampled = {key: ranges[key].suggest(key, trial) for key in list(ranges)[:num_sampled]}
        pending = open_store(tmp_path, space=SPACE).ask()
        assert pending is not None
        assert sampled.items() <= pending.settings.items()
        found.append(pending)
    assert [trial.number for trial in found] == [num_ended] * len(found)
    assert all(trial == found[0] for trial in found)


def test_killed_while_open_settings_of_an_enqueued_trial_were_sampled(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("regularizer.kind: cosine")
    store = open_store(tmp_path, space=SPACE, enqueue=[file])
    run(store, most=1, value=lambda settings: 50.0)
    trial = store._start()
    assert trial is not None
    stored = [store._space.ranges[key].suggest(key, trial) for key in list(START)[:2]]
    again = open_store(tmp_path, space=SPACE, enqueue=[file])
    found = again.ask()
    assert found is not None
    assert (found.number, stored[0]) == (1, "cosine")
    assert [found.settings[key] for key in list(START)[:2]] == stored


def test_killed_before_a_repetition_was_ended(tmp_path: Path) -> None:
    store = open_store(tmp_path, space=SPACE)
    run(store, most=1, value=lambda settings: 50.0)
    store._enqueue(START, {})
    trial = store._start()
    assert trial is not None
    store._space.sample(trial)
    again = open_store(tmp_path, space=SPACE)
    assert again.counts.interrupted == 1
    found = again.ask()
    assert found is not None
    assert (found.number, found.settings != START) == (2, True)
    assert again._storage.trials[1].user_attrs[REPEAT] == 0
    assert [trial.number for trial in again.trials()] == [0]
