"""The trial store when its process dies between two SQL statements. Ray is not started."""

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
THREE_KINDS = "regularizer.kind: {type: choice, choices: [l1, l2, none]}"
"""A space of three settings, so that the sampler repeats settings within five trials."""


class Killed(BaseException):
    """Death of the process. No code handles it, because it is not an `Exception`."""


def is_killed_after(num_statements: int, work: Callable[[], object]) -> bool:
    """Call `work`, but raise `Killed` instead of executing the statement after the first `num_statements`.

    Returns:
        True if `work` was killed, False if it ended before.
    """
    num_left = num_statements

    def die(*_: Any) -> None:
        nonlocal num_left
        num_left -= 1
        if num_left < 0:
            raise Killed

    event.listen(Engine, "before_cursor_execute", die)
    try:
        work()
    except Killed:
        return True
    finally:
        event.remove(Engine, "before_cursor_execute", die)
    return False


@pytest.mark.parametrize(
    ("space", "num_trials"), [(SPACE, 3), (THREE_KINDS, 5)], ids=["settings", "repetitions"]
)
def test_no_trial_is_lost_or_repeated_at_any_kill(tmp_path: Path, space: str, num_trials: int) -> None:
    def finish(folder: Path) -> list[dict[str, Any]]:
        """Start or resume a study. Return the settings and states of its trials."""
        store = open_store(folder, space=space, trials=num_trials)
        run(store, lambda settings: 50.0 + len(str(settings["regularizer.kind"])))
        return [{**trial.settings, "state": trial.state} for trial in store.ended_trials]

    never_killed = finish(tmp_path / "never-killed")
    folder = tmp_path / "killed"
    num_statements = 0

    while is_killed_after(num_statements, lambda: finish(folder)):
        assert finish(folder) == never_killed, f"killed after {num_statements} statements"
        shutil.rmtree(folder)
        # Of a few hundred statements, every eleventh: some within transactions, some between them.
        num_statements += 11

    assert num_statements > 60
    states = {trial.state for trial in open_study(f"sqlite:///{folder}/s/study.db").trials}
    assert states == {TrialState.COMPLETE}


def test_trials_that_ran_when_a_signal_killed_the_process_are_completed_with_their_settings(
    tmp_path: Path,
) -> None:
    url = new_database(tmp_path / "s")
    hanging = ["2", "3"]
    command = [sys.executable, "-m", "tests.support.store_process", str(tmp_path), url, *hanging]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hanging 2 3\n"
        process.kill()
    trials = open_study(url).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE", "RUNNING", "RUNNING"]

    completed = run(open_store(tmp_path, trials=4))

    assert completed == [(2, trials[2].params), (3, trials[3].params)]
    assert {trial.state for trial in open_study(url).trials} == {TrialState.COMPLETE}


def test_sampled_settings_of_an_enqueued_trial_are_stored_with_it(tmp_path: Path) -> None:
    """The file gives one of three settings, so that the sampler chooses the other two."""
    file = tmp_path / "mine.yaml"
    file.write_text("regularizer.kind: cosine")
    store = open_store(tmp_path, space=SPACE, enqueue=[file])
    run(store, most=1, value=lambda settings: 50.0)  # the baseline

    number, settings = sample(store.ask())

    assert number == 1
    assert settings["regularizer.kind"] == "cosine"
    assert len(settings) == 3
    reopened = open_store(tmp_path, space=SPACE, enqueue=[file])
    assert sample(reopened.ask()) == (1, settings)
