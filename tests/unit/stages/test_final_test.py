"""Final test: how many seed pairs it takes, and what it concludes."""

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


def gains(points: float, spread: float = 0.1) -> Score:
    """Trial 7 is better than the baseline by points + spread and points - spread, in turn."""

    def score(number: int, run: Config) -> float:
        turn = run.train.seed - (run.train.seed > 3)  # the search uses seed 3
        return 60.0 + turn + (points + (spread if turn % 2 else -spread) if number else 0.0)

    return score


def config_of(tmp_path: Path, **options: Any) -> StudyConfig:
    return small_config(tmp_path, **{"dataset": "textures", "final_seeds": "auto", **options})


def finish(
    config: StudyConfig, score: Score, number: int = 7, previous: FinalTest | None = None
) -> tuple[FinalTest, list[str]]:
    """The final test of a trial's settings, and the names of its jobs in order."""
    run_stage, names = runner(score)
    settings = {**config.baseline_settings, **({"regularizer.text_weight": 1.5} if number else {})}
    selected = Candidate(number, number == 0, settings, ())
    folder = StudyFolder.of(config)
    published = {"textures": 65.0}
    stages = run_final_test(config, folder, selected, published=published, previous=previous)
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
    assert len(names) == len(set(names)) == 2 * pairs
    assert (len(test.seeds), test.verdict) == (pairs, verdict)
    assert test.alpha == {5: 0.005, 8: 0.01, 11: 0.015, 15: 0.02}[pairs]
    assert test.detectable is not None
    assert test.min_relevant == 1.0
    (dataset,) = test.datasets.values()
    assert dataset.published == 65.0
    assert dataset.difference == test.difference is not None


def test_given_seeds_are_analyzed_once(tmp_path: Path) -> None:
    test, names = finish(config_of(tmp_path, final_seeds=(4, 9, 11)), gains(2.0))
    assert names[:2] == [
        "final test of the default settings, textures, seed 4",
        "final test of the default settings, textures, seed 9",
    ]
    assert (test.seeds, test.alpha, test.min_relevant, test.verdict) == ((4, 9, 11), 0.05, None, "selected")


def test_selected_default_settings_are_run_three_times(tmp_path: Path) -> None:
    test, names = finish(config_of(tmp_path), gains(2.0), number=0)
    assert len(names) == 3
    assert (test.baseline_selected, test.verdict, test.difference) == (True, "baseline", None)
    (dataset,) = test.datasets.values()
    assert dataset.selected == dataset.baseline


def test_stopping_and_verdict_use_the_mean_over_several_datasets_by_seed(tmp_path: Path) -> None:
    config = config_of(tmp_path, dataset=["textures", "cells"])

    def score(number: int, run: Config) -> float | str:
        return gains(5.0 if run.data.name == "textures" else 3.0)(number, run)

    test, names = finish(config, score)
    assert len(names) == 2 * 2 * 5
    assert test.datasets.keys() == {"textures", "cells"}
    assert test.difference is not None
    assert (test.difference.mean, test.difference.n) == (pytest.approx(4.0, abs=0.1), 5)
    assert test.verdict == "selected", "a t-interval over two datasets would contain 0"
    assert test.detectable is not None


def test_a_failed_run_with_the_selected_settings_decides_against_them(tmp_path: Path) -> None:
    config = config_of(tmp_path, dataset=["textures", "cells"])

    def diverges(number: int, run: Config) -> float | str:
        failed = number and run.data.name == "cells"
        return "the loss is nan" if failed else gains(5.0)(number, run)

    test, names = finish(config, diverges)
    assert (test.verdict, len(test.selected_failures), len(names)) == ("baseline", 5, 20)

    def once(number: int, run: Config) -> float | str:
        return "the loss is nan" if number and run.train.seed == 2 else gains(5.0)(number, run)

    test, _ = finish(config_of(tmp_path / "once"), once)
    assert (test.verdict, test.selected_failures) == ("baseline", ["the loss is nan"])


def test_a_failed_run_with_the_default_settings_only_removes_its_pair(tmp_path: Path) -> None:
    def fails(number: int, run: Config) -> float | str:
        return "out of memory" if not number and run.train.seed == 2 else gains(5.0)(number, run)

    test, _ = finish(config_of(tmp_path), fails)
    assert test.verdict == "selected"
    assert test.difference is not None
    assert test.difference.n == 4


def test_results_of_other_epochs_are_kept_and_reused(tmp_path: Path) -> None:
    short = config_of(tmp_path, final_seeds=(1, 2), final_epochs=10)
    long = config_of(tmp_path, final_seeds=(1, 2), final_epochs=20)
    first, names = finish(short, gains(2.0))
    assert len(names) == 4
    assert len(finish(long, gains(3.0))[1]) == 4
    again, names = finish(short, gains(9.0))
    assert (again, names) == (first, []), "nothing was deleted"
    again, names = finish(long, gains(9.0))
    assert names == []
    assert again.difference is not None
    assert again.difference.mean == pytest.approx(3.0, abs=0.1)


def test_a_test_resumes_with_its_results(tmp_path: Path) -> None:
    config = config_of(tmp_path, final_seeds=(1, 2, 3))

    def fails(number: int, run: Config) -> float | str:
        return "its worker died" if number and run.train.seed == 2 else gains(2.0)(number, run)

    test, _ = finish(config, fails)
    assert test.failures == ["its worker died"]
    assert finish(config_of(tmp_path / "b", final_seeds=(1,)), lambda *_: "x")[0].failures == ["x", "x"]
    assert len(finish(config_of(tmp_path / "c"), lambda *_: "x")[1]) == 10, "no more pairs if all fail"
    assert test.difference is not None
    assert test.difference.n == 2
    test, names = finish(config, gains(2.0))
    assert names == ["final test of trial 7, textures, seed 2"]
    assert not test.failures
    assert not finish(config, gains(9.0))[1], "nothing is run twice"


@pytest.mark.parametrize("change", ["objective", "config", "corrupt"])
def test_a_result_of_another_run_is_replaced(change: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, final_seeds=(1, 2))
    first, _ = finish(config, gains(2.0))
    folder = StudyFolder.of(config).final_test_folder(7, "textures", 1)
    if change == "config":
        text = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(text.replace("text_weight: 1.5", "text_weight: 9.5"))
    else:
        result = json.loads((folder / "result.json").read_text())
        text = json.dumps(result | {"objective": "drift"})
        (folder / "result.json").write_text(text if change == "objective" else text[:99])
    again, names = finish(config, gains(2.0))
    assert names == ["final test of trial 7, textures, seed 1"]
    assert again == first


def test_earlier_tests_are_remembered(tmp_path: Path) -> None:
    first, _ = finish(config_of(tmp_path, final_seeds=(1, 2)), gains(0.5))
    config = config_of(tmp_path, final_seeds=(1, 2), final_epochs=20)
    second, names = finish(config, gains(0.5), previous=first)
    assert (len(names), second.earlier_tests) == (4, (7,))
    assert finish(config, gains(0.5), previous=second)[0].earlier_tests == (7,)


def test_seeds_that_were_added_after_a_look_are_remembered(tmp_path: Path) -> None:
    first, _ = finish(config_of(tmp_path, final_seeds=(1, 2)), gains(0.5))
    assert first.interval_name == "95% CI"
    more = config_of(tmp_path, final_seeds=(1, 2, 3))
    second, names = finish(more, gains(0.5), previous=first)
    assert (len(names), second.extended_after, second.earlier_tests) == (2, (2,), ())
    assert second.interval_name == "unadjusted 95% CI"
    assert finish(more, gains(0.5), previous=second)[0].extended_after == (2,)
    longer = config_of(tmp_path, final_seeds=(1, 2, 3), final_epochs=20)
    third, _ = finish(longer, gains(0.5), previous=second)
    assert finish(more, gains(0.5), previous=third)[0].extended_after == (2,), (
        "epochs were changed and restored"
    )
    auto = config_of(tmp_path / "auto")
    planned, _ = finish(auto, gains(2.0))
    assert planned.interval_name == "sequential 95% CI"
    assert finish(auto, gains(2.0), previous=planned)[0].extended_after == (), "its analyses were planned"
