"""Confirmation: which trials are rerun, and which one is selected."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
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


FAILURE = "its worker died"


def trials_of(config: StudyConfig, scores: Sequence[float]) -> list[TrialRecord]:
    """Trials with these objectives and seed 3. The first one is the baseline."""
    trials: list[TrialRecord] = []
    for number, score in enumerate(scores):
        run = RunScore("textures", seed=3, base=score + 1, new=score - 1, objective=score, seconds=1.0)
        settings = {**config.baseline_settings, "regularizer.text_weight": 1.0 + number}
        trials.append(replace(trial(number), settings=settings, objective=score, runs=(run,)))
    return trials


def confirmed(
    tmp_path: Path, scores: Sequence[float], results: Results, **options: Any
) -> tuple[Confirmation, list[str]]:
    """Confirm trials with these objectives in the search.

    Args:
        tmp_path: Parent of the study's folder.
        scores: Objective of each trial in the search.
        results: Objective or failure reason of each rerun. The fresh seeds are 1000 and 1001.
        options: Further options of the study.

    Returns:
        The confirmation, and the names of its jobs in order.
    """
    config = small_config(tmp_path, dataset="textures", **{"top": 2, **options})
    run_stage, names = runner(lambda number, config: results[number, config.train.seed])
    chosen = choose_trials(trials_of(config, scores), config.confirm.top)
    return complete(confirm(config, StudyFolder.of(config), chosen), run_stage), names


def test_the_baseline_and_the_best_are_candidates() -> None:
    trials = [trial(0, objective=1.0)]
    trials += [trial(number, objective=float(number)) for number in (1, 2, 3)]
    assert [each.number for each in choose_trials(trials, top=2)] == [0, 3, 2]


def test_without_confirmation_only_the_best_trial_is_a_candidate() -> None:
    trials = [trial(0, objective=1.0), trial(1, objective=3.0), trial(2, objective=2.0)]
    assert [each.number for each in choose_trials(trials, top=0)] == [1]


def test_a_failed_baseline_is_not_a_candidate() -> None:
    trials = [trial(0, "FAIL"), trial(1, objective=2.0), trial(2, objective=3.0)]
    assert [each.number for each in choose_trials(trials, top=2)] == [2, 1]


SEARCH_SCORES = [60.0, 62.0, 66.0, 59.0]
FRESH_SCORES: Results = {
    (0, 1000): 60.0,
    (0, 1001): 60.0,
    (1, 1000): 63.0,
    (1, 1001): 64.0,
    (2, 1000): 60.0,
    (2, 1001): 61.0,
}


def test_the_highest_mean_over_all_seeds_is_selected(tmp_path: Path) -> None:
    found, names = confirmed(tmp_path, SEARCH_SCORES, FRESH_SCORES)

    assert found.seeds == (1000, 1001)
    means = {each.number: each.mean for each in found.candidates}
    assert means == {
        0: 60.0,
        2: (66.0 + 60.0 + 61.0) / 3,  # the best trial of the search
        1: (62.0 + 63.0 + 64.0) / 3,
    }
    assert found.selected_number == 1
    assert names[0] == "confirmation of trial 0, seed 1000"


def test_a_finished_confirmation_runs_nothing_again(tmp_path: Path) -> None:
    found, _ = confirmed(tmp_path, SEARCH_SCORES, FRESH_SCORES)
    again, names = confirmed(tmp_path, SEARCH_SCORES, {})
    assert again == found
    assert names == []


def test_ties_go_to_the_baseline(tmp_path: Path) -> None:
    equal: Results = {(0, 1000): 60.0, (0, 1001): 60.0, (1, 1000): 60.0, (1, 1001): 60.0}
    found, _ = confirmed(tmp_path, [60.0, 60.0], equal)
    assert found.selected_number == 0


def test_a_candidate_with_a_failed_rerun_is_not_selected(tmp_path: Path) -> None:
    fresh: Results = {(0, 1000): 60.0, (0, 1001): 60.0, (1, 1000): 90.0, (1, 1001): FAILURE}
    found, _ = confirmed(tmp_path, [60.0, 90.0], fresh)

    assert found.selected_number == 0
    _, failed = found.candidates
    assert failed.mean is None
    assert failed.runs[-1].error == FAILURE


def test_the_next_command_repeats_only_the_failed_rerun(tmp_path: Path) -> None:
    fresh = {(0, 1000): 60.0, (0, 1001): 60.0, (1, 1000): 90.0, (1, 1001): FAILURE}
    confirmed(tmp_path, [60.0, 90.0], fresh)
    _, names = confirmed(tmp_path, [60.0, 90.0], fresh | {(1, 1001): 90.0})
    assert names == ["confirmation of trial 1, seed 1001"]


@pytest.mark.parametrize(
    ("failed", "message"),
    [((0,), "of the default settings"), ((0, 1), "of all candidates")],
    ids=["baseline", "all"],
)
def test_a_confirmation_without_baseline_or_any_candidate_is_an_error(
    failed: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    fresh: dict[tuple[int, int], float | str] = {}
    for number, seed in product((0, 1), (1000, 1001)):
        fresh[number, seed] = "the disk is full" if number in failed else 70.0
    with pytest.raises(WorkError, match=f"{message} .*the disk is full. Fix the cause"):
        confirmed(tmp_path, [60.0, 70.0], fresh)


@pytest.mark.parametrize(
    ("scores", "top", "selected"),
    [([60.0, 70.0], 0, 1), ([60.0], 3, 0)],
    ids=["no-confirmation", "one-trial"],
)
def test_a_single_candidate_is_selected_without_reruns(
    scores: list[float], top: int, selected: int, tmp_path: Path
) -> None:
    found, names = confirmed(tmp_path, scores, {}, top=top)
    assert [each.number for each in found.candidates] == [selected]
    assert found.selected_number == selected
    assert found.seeds == ()
    assert names == []


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


FIGURES = {"objective": 1.0, "base": 1.0, "new": 1.0, "seconds": 1.0}


def test_a_result_of_other_settings_is_kept_and_does_not_count(tmp_path: Path) -> None:
    config = small_config(tmp_path).baseline
    job = Job("trial 0", {tmp_path / "run": config}, "base_val")
    write_result(tmp_path / "run", config.override({"optim.lr": 0.5}), "base_val", FIGURES)

    assert jobs_to_run([job]) == [job]
    assert (tmp_path / "run" / "result.json").exists()


def test_a_job_with_a_run_without_result_still_has_to_run(tmp_path: Path) -> None:
    config = small_config(tmp_path).baseline
    job = Job("trial 0", {tmp_path / "first": config, tmp_path / "second": config}, "base_val")
    write_result(tmp_path / "first", config, "base_val", FIGURES)

    assert jobs_to_run([job]) == [job]


def test_a_result_counts_even_if_the_images_have_been_moved(tmp_path: Path) -> None:
    config = small_config(tmp_path).baseline
    job = Job("trial 0", {tmp_path / "run": config}, "base_val")
    write_result(tmp_path / "run", config.override({"data.root": "/elsewhere"}), "base_val", FIGURES)

    assert jobs_to_run([job]) == []
