"""Folder of a study: its records, and the values derived from several of them."""

import math
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest

from prometar.errors import UserError
from tests.support.study_records import DEFAULT, runs_of, settings_of, small, trial, write
from tune.config import StudyConfig
from tune.records.folder import StudyFolder, read_records
from tune.records.schema import Candidate, RunScore, paired_differences, rank_completed, seed_means


@pytest.fixture
def config(tmp_path: Path) -> StudyConfig:
    """Configuration of a study in the folder `textures`."""
    return StudyConfig.of(dataset="textures", trials=3, out=tmp_path)


def test_the_record_of_a_study_contains_its_configuration_and_describes_its_score(
    config: StudyConfig, tmp_path: Path
) -> None:
    StudyFolder.of(config).write_study(config, {"weights": "4b1d"})

    records = read_records(tmp_path / "textures")
    assert records.config == config
    assert records.study.score_name == "H"
    assert not records.study.reads_test_images
    assert records.baseline_config["data.name"] == "textures"


def test_a_study_remembers_environments_of_earlier_commands(
    config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = StudyFolder.of(config)
    folder.write_study(config, {})
    first = read_records(folder.path).study.environment

    monkeypatch.setattr("tune.records.folder.environment", lambda: {"python": "4"})
    folder.write_study(config, {})

    study = read_records(folder.path).study
    assert study.environment == {"python": "4"}
    assert study.earlier_environments == (first,)


def test_a_study_remembers_its_command_without_the_password(
    config: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["tune/search.py", "--trials", "3", "--storage", "postgresql://u:secret@h/d"]
    monkeypatch.setattr("sys.argv", arguments)
    folder = StudyFolder.of(config)
    folder.write_study(config, {})

    command = read_records(folder.path).study.command
    assert command.startswith("python tune/search.py --trials 3")
    assert "secret" not in command


def test_completed_trials_are_ranked_by_objective_and_ties_by_number() -> None:
    trials = [trial(0, objective=60.0), trial(1, objective=62.0), trial(2, objective=62.0), trial(3, "FAIL")]
    assert [record.number for record in rank_completed(trials)] == [1, 2, 0]


def test_the_confirmation_selects_a_trial_and_without_it_the_best_one_is_selected(tmp_path: Path) -> None:
    records = small(tmp_path)
    assert records.completed[0].number == 0, "the best trial of the search"

    assert records.selected is records.trials[1]
    assert replace(records, confirmation=None).selected is records.trials[0]


def test_the_baseline_is_its_completed_rerun_or_else_the_failed_trial(tmp_path: Path) -> None:
    failed = trial(0, "FAIL")
    rerun = trial(4, origin="baseline", settings=DEFAULT)
    before_rerun = replace(small(tmp_path), trials=(failed, trial(1)))
    after_rerun = replace(before_rerun, trials=(failed, trial(1), rerun))

    assert before_rerun.baseline is failed
    assert after_rerun.baseline is rerun


@pytest.mark.parametrize(
    ("tested", "selected", "outdated"), [(1, 1, False), (0, 0, False), (0, 1, True), (1, 0, True)]
)
def test_a_final_test_is_out_of_date_once_another_trial_is_selected(
    tested: int, selected: int, outdated: bool, tmp_path: Path
) -> None:
    records = small(tmp_path, selected=tested)
    assert records.confirmation is not None
    records = replace(records, confirmation=replace(records.confirmation, selected_number=selected))
    expected = None if outdated else records.final_test
    assert records.current_test == expected


def test_the_mean_of_a_candidate_is_that_of_all_its_runs() -> None:
    runs = runs_of(["a", "b"], [0, 1000], DEFAULT)
    candidate = Candidate(0, True, DEFAULT, runs)
    assert sorted(candidate.mean_by_seed) == [0, 1000]
    assert candidate.mean == pytest.approx(mean(run.objective or math.nan for run in runs))


def test_a_candidate_with_a_failed_run_has_no_mean_and_its_seed_has_none() -> None:
    runs = (*runs_of(["a", "b"], [0], DEFAULT), *runs_of(["a"], [1000], DEFAULT))
    failed_run = RunScore("b", 1000, error="killed")
    candidate = Candidate(0, True, DEFAULT, (*runs, failed_run))
    assert candidate.mean is None
    assert list(candidate.mean_by_seed) == [0]


SELECTED_RUNS = (
    RunScore("a", 2, objective=5.0),
    RunScore("a", 1, objective=3.0),
    RunScore("a", 3, error="killed"),
)
"""Runs on one dataset, of which the one with seed 3 has failed."""


def test_seeds_are_paired_if_both_runs_have_a_score() -> None:
    baseline_runs = (
        RunScore("a", 1, objective=1.0),
        RunScore("a", 2, objective=2.0),
        RunScore("a", 3, objective=1.0),
    )
    assert paired_differences(SELECTED_RUNS, baseline_runs) == {1: 2.0, 2: 3.0}


def test_the_mean_of_a_seed_over_datasets_is_left_out_if_a_score_is_missing() -> None:
    runs = (*SELECTED_RUNS, RunScore("b", 1, objective=4.0))
    assert seed_means(runs) == {1: 3.5, 2: 5.0}
    assert seed_means(SELECTED_RUNS, "new") == {}


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not contain a study"):
        read_records(tmp_path / "none")


def test_a_record_in_the_folder_of_another_trial_is_refused(tmp_path: Path) -> None:
    write(tmp_path, small(tmp_path))
    (tmp_path / "trials/0001").rename(tmp_path / "trials/0007")
    with pytest.raises(UserError, match="belongs to trial 1"):
        read_records(tmp_path)


def test_a_study_without_confirmation_and_final_test_can_be_read(tmp_path: Path) -> None:
    write(tmp_path, replace(small(tmp_path), confirmation=None, final_test=None))
    (tmp_path / "trials/0009").mkdir()  # a trial that is running

    records = read_records(tmp_path)

    assert [record.number for record in records.trials] == [0, 1, 2, 3]
    assert records.confirmation is None
    assert records.final_test is None
    assert records.current_test is None
    assert records.trials[1].settings == settings_of(1)
