"""Final test: how many seed pairs it runs, and what it concludes."""

import json
from pathlib import Path
from typing import Any

import pytest

from prometar.config.settings import Config
from tests.support.driver import small_config
from tests.support.study_records import Score, runner
from tune import StudyConfig
from tune.execution.flows import complete
from tune.records.folder import StudyFolder
from tune.records.schema import Candidate, FinalTest
from tune.stages.final_test import run_final_test

SEARCH_SEED = 3
"""Seed of the search, which the final test skips with `--final-seeds auto`."""


def gains(points: float, spread: float = 0.1) -> Score:
    """Selected settings that are better than the baseline by points + spread and points - spread, in turn."""

    def score(number: int, run: Config) -> float:
        seed = run.train.seed
        turn = seed - 1 if seed > SEARCH_SEED else seed
        baseline = 60.0 + turn
        if number == 0:
            return baseline
        deviation = spread if turn % 2 else -spread
        return baseline + (points + deviation)

    return score


def fails_with_seed_2(reason: str, *, selected: bool, points: float = 5.0) -> Score:
    """Like `gains`, but the run with seed 2 fails for the selected settings or else for the default ones."""
    succeeds = gains(points)

    def score(number: int, run: Config) -> float | str:
        is_selected = number != 0
        if is_selected == selected and run.train.seed == 2:
            return reason
        return succeeds(number, run)

    return score


def config_of(tmp_path: Path, **options: Any) -> StudyConfig:
    """Configuration of a study whose final test adds seed pairs until an analysis is conclusive."""
    return small_config(tmp_path, **{"dataset": "textures", "final_seeds": "auto", **options})


def finish(
    config: StudyConfig, score: Score, number: int = 7, previous: FinalTest | None = None
) -> tuple[FinalTest, list[str]]:
    """Run the final test of a trial's settings. Trial 0 has the default settings.

    Returns:
        The final test, and the names of its jobs in order.
    """
    run_stage, names = runner(score)
    settings = dict(config.baseline_settings)
    if number:
        settings["regularizer.text_weight"] = 1.5
    selected = Candidate(number, is_baseline=number == 0, settings=settings, runs=())
    folder = StudyFolder.of(config)
    stages = run_final_test(config, folder, selected, published={"textures": 65.0}, previous=previous)
    return complete(stages, run_stage), names


@pytest.mark.parametrize(
    ("points", "spread", "pairs", "verdict"),
    [
        (1.0, 0.3, 5, "selected"),
        (-1.0, 0.3, 5, "baseline"),
        (0.0, 0.2, 5, "either"),
        (1.0, 0.6, 8, "selected"),
        (1.0, 1.0, 11, "selected"),
        (1.0, 1.4, 15, "selected"),
        (1.0, 3.0, 15, "either"),
    ],
)
def test_pairs_are_added_until_an_analysis_decides(
    points: float, spread: float, pairs: int, verdict: str, tmp_path: Path
) -> None:
    test, names = finish(config_of(tmp_path), gains(points, spread))

    assert len(test.seeds) == pairs
    assert test.verdict == verdict
    assert test.alpha == {5: 0.005, 8: 0.01, 11: 0.015, 15: 0.02}[pairs]
    assert len(names) == 2 * pairs
    assert len(set(names)) == 2 * pairs, "no job runs twice"


def test_a_sequential_test_records_the_smallest_relevant_and_the_smallest_detectable_difference(
    tmp_path: Path,
) -> None:
    test, _ = finish(config_of(tmp_path), gains(1.0, spread=0.3))
    assert test.min_relevant == 1.0
    assert test.detectable is not None


def test_a_single_dataset_has_the_interval_of_the_test_and_its_published_accuracy(tmp_path: Path) -> None:
    test, _ = finish(config_of(tmp_path), gains(1.0, spread=0.3))
    (dataset,) = test.datasets.values()
    assert test.difference is not None
    assert dataset.difference == test.difference
    assert dataset.published == 65.0


def test_given_seeds_are_analyzed_once_and_with_the_whole_error_probability(tmp_path: Path) -> None:
    test, names = finish(config_of(tmp_path, final_seeds=(4, 9, 11)), gains(2.0))

    assert names[:2] == [
        "final test of the default settings, textures, seed 4",
        "final test of the default settings, textures, seed 9",
    ]
    assert test.seeds == (4, 9, 11)
    assert test.alpha == 0.05
    assert test.min_relevant is None
    assert test.verdict == "selected"


def test_selected_default_settings_are_run_three_times_and_compared_with_nothing(tmp_path: Path) -> None:
    test, names = finish(config_of(tmp_path), gains(2.0), number=0)

    assert len(names) == 3
    assert test.baseline_selected
    assert test.verdict == "baseline"
    assert test.difference is None
    (dataset,) = test.datasets.values()
    assert dataset.selected == dataset.baseline


def test_stopping_and_verdict_use_the_mean_over_several_datasets_by_seed(tmp_path: Path) -> None:
    config = config_of(tmp_path, dataset=["textures", "cells"])
    on_textures = gains(5.0)
    on_cells = gains(3.0)

    def score(number: int, run: Config) -> float | str:
        if run.data.name == "textures":
            return on_textures(number, run)
        return on_cells(number, run)

    test, names = finish(config, score)

    num_pairs = 5
    assert len(names) == 2 * num_pairs * 2  # sides, pairs, datasets
    assert test.datasets.keys() == {"textures", "cells"}
    assert test.difference is not None
    assert test.difference.n == num_pairs
    assert test.difference.mean == pytest.approx(4.0, abs=0.1)
    assert test.verdict == "selected", "a t-interval over two datasets would contain 0"
    assert test.detectable is not None


def test_selected_settings_that_fail_on_one_of_two_datasets_are_not_recommended(tmp_path: Path) -> None:
    config = config_of(tmp_path, dataset=["textures", "cells"])
    succeeds = gains(5.0)

    def diverges_on_cells(number: int, run: Config) -> float | str:
        if number and run.data.name == "cells":
            return "the loss is nan"
        return succeeds(number, run)

    test, names = finish(config, diverges_on_cells)

    assert test.verdict == "baseline"
    assert len(test.selected_failures) == 5
    assert len(names) == 20, "no more pairs than the first five are run"


def test_selected_settings_that_fail_once_are_not_recommended(tmp_path: Path) -> None:
    test, _ = finish(config_of(tmp_path), fails_with_seed_2("the loss is nan", selected=True))
    assert test.verdict == "baseline"
    assert test.selected_failures == ["the loss is nan"]


def test_a_failed_run_with_the_default_settings_only_removes_its_pair(tmp_path: Path) -> None:
    test, _ = finish(config_of(tmp_path), fails_with_seed_2("out of memory", selected=False))
    assert test.verdict == "selected"
    assert test.difference is not None
    assert test.difference.n == 4


def fails_always(number: int, run: Config) -> str:
    return "out of memory"


def test_failures_of_both_sides_are_listed(tmp_path: Path) -> None:
    test, _ = finish(config_of(tmp_path, final_seeds=(1,)), fails_always)
    assert test.failures == ["out of memory", "out of memory"]


def test_no_more_pairs_are_run_if_all_have_failed(tmp_path: Path) -> None:
    _, names = finish(config_of(tmp_path), fails_always)
    assert len(names) == 2 * 5


def test_results_of_other_epochs_are_kept_and_reused(tmp_path: Path) -> None:
    short = config_of(tmp_path, final_seeds=(1, 2), final_epochs=10)
    long = config_of(tmp_path, final_seeds=(1, 2), final_epochs=20)
    first_short, _ = finish(short, gains(2.0))
    first_long, names_of_long = finish(long, gains(3.0))
    assert len(names_of_long) == 4

    again_short, names_of_short = finish(short, gains(9.0))
    again_long, names_of_long = finish(long, gains(9.0))

    assert names_of_short == []
    assert names_of_long == []
    assert again_short == first_short
    assert again_long == first_long


def test_a_resumed_test_repeats_only_the_failed_run(tmp_path: Path) -> None:
    config = config_of(tmp_path, final_seeds=(1, 2, 3))
    test, _ = finish(config, fails_with_seed_2("its worker died", selected=True, points=2.0))
    assert test.failures == ["its worker died"]
    assert test.difference is not None
    assert test.difference.n == 2

    test, names = finish(config, gains(2.0))
    assert names == ["final test of trial 7, textures, seed 2"]
    assert not test.failures

    _, names = finish(config, gains(9.0))
    assert names == [], "nothing is run twice"


@pytest.mark.parametrize("change", ["objective", "config", "corrupt"])
def test_a_result_of_another_run_is_replaced(change: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, final_seeds=(1, 2))
    first, _ = finish(config, gains(2.0))
    folder = StudyFolder.of(config).final_test_folder(7, "textures", 1)
    config_path = folder / "config.yaml"
    result_path = folder / "result.json"
    if change == "config":
        text = config_path.read_text()
        config_path.write_text(text.replace("text_weight: 1.5", "text_weight: 9.5"))
    elif change == "objective":
        result = json.loads(result_path.read_text())
        result_path.write_text(json.dumps(result | {"objective": "drift"}))
    else:
        beginning = result_path.read_text()[:99]
        result_path.write_text(beginning)

    again, names = finish(config, gains(2.0))

    assert names == ["final test of trial 7, textures, seed 1"]
    assert again == first


def test_a_test_of_other_epochs_remembers_the_earlier_test(tmp_path: Path) -> None:
    first, _ = finish(config_of(tmp_path, final_seeds=(1, 2)), gains(0.5))
    longer = config_of(tmp_path, final_seeds=(1, 2), final_epochs=20)

    second, _ = finish(longer, gains(0.5), previous=first)
    assert second.earlier_tests == (7,)

    third, _ = finish(longer, gains(0.5), previous=second)
    assert third.earlier_tests == (7,), "a rerun of the same test adds nothing"


@pytest.fixture
def extended(tmp_path: Path) -> FinalTest:
    """A test with the seeds 1, 2 and 3 in `tmp_path`, after one with the seeds 1 and 2."""
    first, _ = finish(config_of(tmp_path, final_seeds=(1, 2)), gains(0.5))
    test, _ = finish(config_of(tmp_path, final_seeds=(1, 2, 3)), gains(0.5), previous=first)
    return test


def test_seeds_that_are_added_after_a_look_are_remembered(extended: FinalTest) -> None:
    assert extended.extended_after == (2,)
    assert extended.earlier_tests == ()


def test_a_rerun_of_an_extended_test_adds_nothing(extended: FinalTest, tmp_path: Path) -> None:
    again, _ = finish(config_of(tmp_path, final_seeds=(1, 2, 3)), gains(0.5), previous=extended)
    assert again.extended_after == (2,)


def test_added_seeds_are_remembered_if_the_epochs_are_changed_and_restored(
    extended: FinalTest, tmp_path: Path
) -> None:
    longer = config_of(tmp_path, final_seeds=(1, 2, 3), final_epochs=20)
    changed, _ = finish(longer, gains(0.5), previous=extended)
    restored, _ = finish(config_of(tmp_path, final_seeds=(1, 2, 3)), gains(0.5), previous=changed)
    assert restored.extended_after == (2,)


def test_an_extended_test_runs_only_the_added_pair(tmp_path: Path) -> None:
    first, _ = finish(config_of(tmp_path, final_seeds=(1, 2)), gains(0.5))
    _, names = finish(config_of(tmp_path, final_seeds=(1, 2, 3)), gains(0.5), previous=first)
    assert len(names) == 2


def test_a_sequential_test_has_planned_its_looks(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    first, _ = finish(config, gains(2.0))
    again, _ = finish(config, gains(2.0), previous=first)
    assert again.extended_after == ()


def test_the_name_of_an_interval_says_how_the_seeds_were_chosen(extended: FinalTest, tmp_path: Path) -> None:
    fixed, _ = finish(config_of(tmp_path / "fixed", final_seeds=(1, 2)), gains(0.5))
    sequential, _ = finish(config_of(tmp_path / "auto"), gains(2.0))
    assert fixed.interval_name == "95% CI"
    assert sequential.interval_name == "sequential 95% CI"
    assert extended.interval_name == "unadjusted 95% CI"
