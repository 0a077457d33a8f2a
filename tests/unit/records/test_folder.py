"""A study's folder, and what its records tell together."""

from dataclasses import replace
from pathlib import Path

import pytest

from prometar.errors import UserError
from tests.support.study_records import DEFAULT, run, settings_of, small, trial, write
from tune.config import StudyConfig
from tune.records.folder import StudyFolder, read_records
from tune.records.schema import Candidate, RunScore, paired_differences, rank_completed, seed_means


def test_a_study_remembers_its_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv", ["tune/search.py", "--trials", "3", "--storage", "postgresql://u:secret@h/d"]
    )
    config = StudyConfig.of(dataset="textures", trials=3, out=tmp_path)
    folder = StudyFolder.of(config)
    assert folder.path == tmp_path / "textures"
    folder.write_study(config, {"weights": "4b1d"})
    first = read_records(folder.path).study
    monkeypatch.setattr("tune.records.folder.environment", lambda: {"python": "4"})
    folder.write_study(config, {"weights": "4b1d"})
    records = read_records(folder.path)
    assert records.config == config
    assert records.study.earlier_environments == (first.environment,)
    assert (records.study.score_name, records.study.reads_test_images) == ("H", False)
    assert records.study.command.startswith("python tune/search.py --trials 3")
    assert "secret" not in records.study.command
    assert records.baseline_config["data.name"] == "textures"


def test_the_earliest_of_the_best_trials_leads() -> None:
    trials = [trial(0, objective=60.0), trial(1, objective=62.0), trial(2, objective=62.0), trial(3, "FAIL")]
    assert [each.number for each in rank_completed(trials)] == [1, 2, 0]


def test_the_confirmation_selects(tmp_path: Path) -> None:
    records = small(tmp_path)
    assert records.selected is not None
    assert records.selected.number == 1
    assert records.completed[0].number == 0
    assert replace(records, confirmation=None).selected is records.trials[0]


def test_a_baseline_that_was_rerun_counts_once_it_has_finished(tmp_path: Path) -> None:
    failed = trial(0, "FAIL")
    again = trial(4, origin="baseline", settings=DEFAULT)
    records = replace(small(tmp_path), trials=(failed, trial(1), again))
    assert records.baseline is again
    assert replace(records, trials=(failed, trial(1))).baseline is failed


@pytest.mark.parametrize(
    ("tested", "selected", "outdated"), [(1, 1, False), (0, 0, False), (0, 1, True), (1, 0, True)]
)
def test_an_outdated_final_test(tested: int, selected: int, outdated: bool, tmp_path: Path) -> None:
    records = small(tmp_path, selected=tested)
    assert records.confirmation is not None
    records = replace(records, confirmation=replace(records.confirmation, selected_number=selected))
    assert records.current_test == (None if outdated else records.final_test)


def test_candidates_are_compared_over_all_their_seeds() -> None:
    runs = (run("a", 0, DEFAULT), run("b", 0, DEFAULT), run("a", 1000, DEFAULT), run("b", 1000, DEFAULT))
    known = Candidate(0, True, DEFAULT, runs)
    assert sorted(known.mean_by_seed) == [0, 1000]
    assert known.mean == pytest.approx(sum(each.objective or 0.0 for each in runs) / 4)
    failed = replace(known, runs=(*runs[:3], RunScore("b", 1000, error="killed")))
    assert failed.mean is None
    assert list(failed.mean_by_seed) == [0]


def test_pairs_and_means_need_both_runs() -> None:
    ours = (RunScore("a", 2, objective=5.0), RunScore("a", 1, objective=3.0), RunScore("a", 3, error="x"))
    theirs = (
        RunScore("a", 1, objective=1.0),
        RunScore("a", 2, objective=2.0),
        RunScore("a", 3, objective=1.0),
    )
    assert paired_differences(ours, theirs) == {1: 2.0, 2: 3.0}
    assert seed_means((*ours, RunScore("b", 1, objective=4.0))) == {1: 3.5, 2: 5.0}
    assert seed_means(ours, "new") == {}


def test_a_folder_without_a_study(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not contain a study"):
        read_records(tmp_path / "none")


def test_a_record_in_the_folder_of_another_trial(tmp_path: Path) -> None:
    write(tmp_path, small(tmp_path))
    (tmp_path / "trials/0001").rename(tmp_path / "trials/0007")
    with pytest.raises(UserError, match="belongs to trial 1"):
        read_records(tmp_path)


def test_a_partial_study_can_be_read(tmp_path: Path) -> None:
    write(tmp_path, replace(small(tmp_path), confirmation=None, final_test=None))
    (tmp_path / "trials/0009").mkdir()  # a trial that is running
    records = read_records(tmp_path)
    assert [each.number for each in records.trials] == [0, 1, 2, 3]
    assert (records.confirmation, records.final_test, records.current_test) == (None, None, None)
    assert records.trials[1].settings == settings_of(1)
