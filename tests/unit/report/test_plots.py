"""Plots: Optuna's study from records, importance, and own plots."""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from optuna.trial import TrialState

from tests.support.study_records import run, settings_of, small, trial
from tune.config import Goal
from tune.records.folder import Records
from tune.records.timeline import Outcome, TimelineEntry
from tune.report.plots import (
    MIN_IMPORTANCE_TRIALS,
    embed,
    importances,
    plot_accuracies,
    plot_calibration,
    plot_confusion,
    plot_seed_pairs,
    plot_timeline,
    plots,
    rebuild_study,
)


def searched(folder: Path, number: int, **options: Any) -> Records:
    trials = tuple(trial(n) for n in range(number))
    return replace(small(folder, **options), trials=trials, confirmation=None, final_test=None)


def test_a_rebuilt_study_has_the_same_trials(tmp_path: Path) -> None:
    records = small(tmp_path)
    records = replace(
        records, trials=(*records.trials, trial(4), replace(trial(5), settings={"optim.lr": "fast"}))
    )
    study = rebuild_study(records, ["objective"])
    by_number = {each.number: each for each in study.trials}
    done = {number for number, each in by_number.items() if each.state is TrialState.COMPLETE}
    assert done == {0, 1, 4}
    assert by_number[2].state is TrialState.PRUNED
    assert {n for n, each in by_number.items() if each.state is TrialState.FAIL} == {3, 5}
    for number in done:
        assert by_number[number].params == settings_of(number)
        assert by_number[number].value == trial(number).objective
    assert list(by_number[2].intermediate_values) == [1, 2]
    assert study.best_trial.number == max(done, key=lambda n: trial(n).objective or 0.0)


def test_a_setting_that_one_trial_lacks_causes_no_warning(tmp_path: Path) -> None:
    records = searched(tmp_path, MIN_IMPORTANCE_TRIALS + 1)
    settings = {"optim.lr": 0.001, "regularizer.text_weight": 2.0}
    complete = tuple(
        replace(each, settings={key: value * (1 + each.number) for key, value in settings.items()})
        for each in records.trials[1:]
    )
    lacking = replace(records.trials[0], settings={"optim.lr": 0.0005})
    assert "importance" in plots(replace(records, trials=(lacking, *complete)))


@pytest.mark.parametrize(("goal", "setting"), [("objective", "optim.lr"), ("seconds", "prompts.text_depth")])
def test_importance_finds_the_setting_that_matters(goal: Goal, setting: str, tmp_path: Path) -> None:
    records = searched(tmp_path, 60)
    seconds = [120.0 + 60 * float(each.settings["prompts.text_depth"]) for each in records.trials]
    slow = tuple(replace(t, seconds=s) for t, s in zip(records.trials, seconds, strict=True))
    ranked = importances(rebuild_study(replace(records, trials=slow), [goal]))
    assert next(iter(ranked)) == setting


def test_no_importance_without_enough_different_trials(tmp_path: Path) -> None:
    assert importances(rebuild_study(searched(tmp_path, MIN_IMPORTANCE_TRIALS - 1), ["objective"])) == {}
    records = searched(tmp_path, MIN_IMPORTANCE_TRIALS)
    assert importances(rebuild_study(records, ["objective"]))
    equal = tuple(replace(each, objective=60.0) for each in records.trials)
    assert importances(rebuild_study(replace(records, trials=equal), ["objective"])) == {}


def test_pairs_whose_interval_contains_0_are_gray(tmp_path: Path) -> None:
    colors = {}
    for name, gains in {"better": (3, 2), "worse": (-3, -2), "even": (0, 0)}.items():
        records = small(tmp_path, *gains)
        assert records.final_test is not None
        singles, interval = plot_seed_pairs(records.final_test).data
        assert len(singles.x) == 5
        colors[name] = interval.marker.color
        found = records.final_test.datasets["dtd"].difference
        assert found is not None
        assert interval.x[0] - interval.error_x.arrayminus[0] == pytest.approx(found.low)
    assert colors["even"] == "#7b8794"
    assert len(set(colors.values())) == 3


def test_accuracies_lie_on_lines_of_equal_h() -> None:
    settings = settings_of(0)
    figure = plot_accuracies(
        {"default settings": [run("dtd", 1, settings), run("dtd", 2, settings, 20, -30)]}
    )
    *lines, points = figure.data
    assert len(points.x) == 2
    for line in lines:
        means = [2 * base * new / (base + new) for base, new in zip(line.x, line.y, strict=True)]
        assert means == pytest.approx([means[0]] * len(means))
        assert means[0] % 5 == pytest.approx(0)
    assert "plot-x" in embed(plot_accuracies({"trials": []}), "x"), "an empty plot"


def test_confusion_is_summed_over_seeds_in_percent_of_each_class(tmp_path: Path) -> None:
    test = small(tmp_path).final_test
    assert test is not None
    found = test.datasets["dtd"]
    base, new = plot_confusion(found, "selected").data
    assert base.z.shape == (3, 3)
    assert new.z.sum(axis=1) == pytest.approx([100, 100])
    accuracies = [mean(run.metrics["base"].class_accuracies[k] for run in found.selected) for k in range(3)]
    assert base.z.diagonal() == pytest.approx(accuracies, abs=1e-3), "every class has as many images"


def test_calibration_weights_seeds_by_their_images(tmp_path: Path) -> None:
    test = small(tmp_path).final_test
    assert test is not None
    found = test.datasets["dtd"]
    figure = plot_calibration(found, test.compared_names)
    lines = [each for each in figure.data if each.name]
    assert [each.name for each in lines] == ["default settings", "selected settings"] * 2
    bins = [run.metrics["base"].bins[-1] for run in found.baseline]
    images = sum(count for count, *_ in bins)
    assert lines[0].y[-1] == pytest.approx(sum(count * accuracy for count, _, accuracy in bins) / images)


def entry(job: str, slot: int, start: float, end: float, outcome: Outcome = "finished") -> TimelineEntry:
    """A job of the search. `start` and `end` are in minutes."""
    begin = datetime(2026, 1, 1)
    return TimelineEntry(
        "Search", job, slot, begin + timedelta(minutes=start), begin + timedelta(minutes=end), outcome
    )


def test_a_timeline_has_a_row_per_slot_and_a_bar_per_job() -> None:
    (bars,) = plot_timeline([entry("trial 1", 2, 1, 4), entry("trial 0", 1, 0, 3)]).data
    assert bars.y == ("slot 1", "slot 2")
    assert bars.base == pytest.approx((0, 1))
    assert bars.x == pytest.approx((3, 3))
    assert bars.text == ("trial 0: finished, 3:00", "trial 1: finished, 3:00")


def test_a_timeline_shortens_the_time_between_two_commands() -> None:
    (bars,) = plot_timeline([entry("trial 0", 1, 0, 3), entry("trial 1", 1, 5000, 5002)]).data
    assert bars.base == pytest.approx((0, 4)), "a minute after the end of trial 0"


def test_a_timeline_shows_how_jobs_ended() -> None:
    figure = plot_timeline([entry("trial 0", 1, 0, 3, "failed"), entry("trial 1", 1, 3, 4, "pruned")])
    assert [bars.name for bars in figure.data] == ["Search, failed", "Search, pruned"]


def test_names_in_a_timeline_are_text() -> None:
    (bars,) = plot_timeline([entry("<script>alert(1)</script>", 1, 0, 3)]).data
    assert "<script>" not in bars.text[0]
