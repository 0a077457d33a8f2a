"""Confirmation: which trials are rerun, and which one is selected."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prometar.config.settings import Config
from prometar.errors import WorkError
from tests.support.driver import small_config
from tests.support.fake_trial import write_result
from tests.support.study_records import runner, trial
from tune import StudyConfig
from tune.execution.flows import complete
from tune.execution.job import Job
from tune.records.folder import StudyFolder
from tune.records.schema import Confirmation, RunScore, TrialRecord
from tune.stages.confirmation import choose_trials, confirm
from tune.stages.study_jobs import jobs_to_run

Results = Mapping[tuple[int, int], float | str]
"""Objective or failure reason, by trial number and seed."""


def trials_of(config: StudyConfig, scores: Sequence[float]) -> list[TrialRecord]:
    """Trials with these objectives and seed 3. The first one is the baseline."""
    return [
        replace(
            trial(number),
            settings={**config.baseline_settings, "regularizer.text_weight": 1.0 + number},
            objective=score,
            runs=(RunScore("textures", 3, score + 1, score - 1, score, seconds=1.0),),
        )
        for number, score in enumerate(scores)
    ]


def confirmed(
    tmp_path: Path, scores: Sequence[float], results: Results, **options: Any
) -> tuple[Confirmation, list[str]]:
    """The confirmation, and the names of its jobs."""
    config = small_config(tmp_path, dataset="textures", **{"top": 2, **options})
    run_stage, names = runner(lambda number, config: results[number, config.train.seed])
    chosen = choose_trials(trials_of(config, scores), config.confirm.top)
    return complete(confirm(config, StudyFolder.of(config), chosen), run_stage), names


def test_the_baseline_and_the_best_are_candidates() -> None:
    ranked = [trial(0, objective=1.0), *(trial(number, objective=float(number)) for number in (1, 2, 3))]
    assert [t.number for t in choose_trials(ranked, 2)] == [0, 3, 2]
    assert [t.number for t in choose_trials(ranked, 0)] == [3]
    assert [t.number for t in choose_trials([trial(0, "FAIL"), *ranked[1:]], 2)] == [3, 2]


def test_the_highest_mean_over_all_seeds_is_selected(tmp_path: Path) -> None:
    fresh = {
        (0, 1000): 60.0,
        (0, 1001): 60.0,
        (2, 1000): 60.0,
        (2, 1001): 61.0,
        (1, 1000): 63.0,
        (1, 1001): 64.0,
    }
    found, names = confirmed(tmp_path, [60.0, 62.0, 66.0, 59.0], fresh)
    assert found.seeds == (1000, 1001)
    assert [(each.number, each.mean) for each in found.candidates] == [(0, 60.0), (2, 187 / 3), (1, 63.0)]
    assert found.selected_number == 1
    assert names[0] == "confirmation of trial 0, seed 1000"
    again, names = confirmed(tmp_path, [60.0, 62.0, 66.0, 59.0], {})
    assert (again, names) == (found, []), "nothing is run twice"


def test_ties_go_to_the_baseline(tmp_path: Path) -> None:
    same = {(number, seed): 60.0 for number in (0, 1) for seed in (1000, 1001)}
    assert confirmed(tmp_path, [60.0, 60.0], same)[0].selected_number == 0


def test_a_candidate_that_failed_is_not_selected(tmp_path: Path) -> None:
    fresh = {(0, 1000): 60.0, (0, 1001): 60.0, (1, 1000): 90.0, (1, 1001): "its worker died"}
    found, _ = confirmed(tmp_path, [60.0, 90.0], fresh)
    assert found.selected_number == 0
    assert (found.candidates[1].mean, found.candidates[1].runs[-1].error) == (None, "its worker died")
    _, names = confirmed(tmp_path, [60.0, 90.0], fresh | {(1, 1001): 90.0})
    assert names == ["confirmation of trial 1, seed 1001"], "only the failed run is repeated"


@pytest.mark.parametrize(
    ("failed", "message"), [((0,), "of the default settings"), ((0, 1), "of all candidates")]
)
def test_a_confirmation_needs_a_baseline(failed: tuple[int, ...], message: str, tmp_path: Path) -> None:
    fresh = {
        (number, seed): "the disk is full" if number in failed else 70.0
        for number in (0, 1)
        for seed in (1000, 1001)
    }
    with pytest.raises(WorkError, match=f"{message} .*the disk is full. Fix the cause"):
        confirmed(tmp_path, [60.0, 70.0], fresh)


@pytest.mark.parametrize(("scores", "top", "selected"), [([60.0, 70.0], 0, 1), ([60.0], 3, 0)])
def test_no_rerun_without_a_choice(scores: list[float], top: int, selected: int, tmp_path: Path) -> None:
    found, names = confirmed(tmp_path, scores, {}, top=top)
    assert (found.selected_number, found.seeds, len(found.candidates), names) == (selected, (), 1, [])


def test_reruns_train_as_long_as_the_final_test_and_then_only_fresh_seeds_count(tmp_path: Path) -> None:
    config = small_config(tmp_path, dataset="textures", top=1, epochs=3, final_epochs=20)
    epochs: list[int] = []

    def score(number: int, run: Config) -> float:
        epochs.append(run.train.epochs)
        return 60.0 + number

    run_stage, _ = runner(score)
    trials = trials_of(config, [60.0, 99.0])
    found = complete(confirm(config, StudyFolder.of(config), trials), run_stage)
    assert epochs == [20] * 4
    assert [each.mean for each in found.candidates] == [60.0, 61.0], "the search scored 99.0 after 3 epochs"


def test_a_result_of_other_settings_is_kept_and_does_not_count(tmp_path: Path) -> None:
    config = small_config(tmp_path).baseline
    figures = {"objective": 1.0, "base": 1.0, "new": 1.0, "seconds": 1.0}
    write_result(tmp_path / "second", config.override({"optim.lr": 0.5}), "base_val", figures)
    job = Job("both", {tmp_path / "first": config, tmp_path / "second": config}, "base_val", 2)
    assert jobs_to_run([job]) == [job]
    assert (tmp_path / "second" / "result.json").exists()
    for folder in job.configs:
        write_result(folder, config.override({"data.root": "/elsewhere"}), "base_val", figures)
    assert not jobs_to_run([job]), "moved images do not invalidate a result"
