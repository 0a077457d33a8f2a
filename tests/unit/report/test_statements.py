"""Statements of a report: verdict, evidence, caveats and next steps."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prometar.metrics import Interval
from tests.support.study_records import candidate, final_test, small, trial
from tune.records.folder import Records
from tune.records.schema import DatasetTest, RunScore
from tune.report.statements import caveats, evidence, next_steps, verdict_text
from tune.report.terminal import print_summary


def with_test(records: Records, **changes: Any) -> Records:
    assert records.final_test is not None
    return replace(records, final_test=replace(records.final_test, **changes))


def printed(records: Records, width: int = 110) -> str:
    out = io.StringIO()
    print_summary(Console(file=out, width=width), records)
    return out.getvalue()


@pytest.mark.parametrize(
    ("gains", "selected", "verdict", "trained_files"),
    [
        (
            (3, 2),
            1,
            "Use the selected settings (trial 1). They are better than the default settings.",
            ["selected.yaml"],
        ),
        (
            (0, 0),
            1,
            "Use either. The final test did not show that selected and default settings differ in H.",
            ["selected.yaml", "default.yaml"],
        ),
        (
            (-3, -2),
            1,
            "Keep the default settings. The selected settings (trial 1) are worse.",
            ["default.yaml"],
        ),
        (
            (0, 0),
            0,
            "Keep the default settings. The search found nothing better: no other settings scored "
            "higher in the confirmation.",
            ["default.yaml"],
        ),
    ],
)
def test_the_verdict_comes_first_and_the_next_steps_follow_from_it(
    gains: tuple[float, float], selected: int, verdict: str, trained_files: list[str], tmp_path: Path
) -> None:
    records = small(tmp_path, *gains, selected=selected)
    assert verdict_text(records) == verdict
    commands = [command for _, command in next_steps(records) if command]
    assert commands == [f"prometar train --config {tmp_path / name}" for name in trained_files]
    lines = printed(records, 200).strip().splitlines()
    assert lines[0] == verdict
    assert lines[-1] == f"Report: {tmp_path / 'report.html'}"
    assert "…" not in printed(records, 80), "numbers are not cut"


def test_if_the_verdict_is_use_either_the_settings_with_the_higher_mean_come_first(tmp_path: Path) -> None:
    records = with_test(small(tmp_path, 0, 0), difference=Interval(-3.0, -8.0, 2.0, 5))
    assert verdict_text(records).startswith("Use either.")
    assert [text for text, command in next_steps(records) if command] == [
        "Train with the default settings:",
        "Train with the selected settings:",
    ]


@pytest.mark.parametrize(("base", "new", "first"), [(-8, -8, "default"), (3, 2, "selected")])
def test_a_single_seed_pair_recommends_the_settings_with_the_higher_h(
    base: float, new: float, first: str, tmp_path: Path
) -> None:
    test = final_test(candidate(1), {"dtd": (base, new)}, seeds=(11,))
    assert (test.difference, test.verdict) == (None, "either")
    assert test.recommends_baseline == (first == "default"), "the settings that best.yaml gets"
    records = replace(small(tmp_path), final_test=test)
    assert next_steps(records)[0][0] == f"Train with the {first} settings:"


def test_the_evidence_gives_differences_with_intervals_and_the_number_of_epochs(tmp_path: Path) -> None:
    records = with_test(small(tmp_path, epochs=5), difference=Interval(2.34, 1.1, 4.06, 5))
    records = with_test(records, alpha=0.005, min_relevant=1.0)  # as with --final-seeds auto
    first, second, new, epochs = evidence(records)
    assert first == (
        "Mean difference in H over seed pairs (selected minus default settings, test images): "
        "+2.3 points (sequential 95% CI [+1.1, +4.1], n = 5)."
    )
    assert second.startswith("Mean difference in base accuracy: +3.3 points (sequential 95% CI [")
    assert new == (
        "New accuracy (mean ± standard deviation over 5 seeds): "
        "66.6 ± 1.0 with the selected settings, 64.6 ± 1.0 with the default settings."
    )
    assert epochs == "Epochs: 5 per trial, 10 per run of the confirmation and the final test."


def test_searched_epochs_are_stated_for_both_settings(tmp_path: Path) -> None:
    ranges = {"train.epochs": {"type": "int", "low": 3, "high": 20}}
    records = small(tmp_path, ranges=ranges)
    records = with_test(records, selected=replace(candidate(1), settings={"train.epochs": 17}))
    assert evidence(records)[-1] == (
        "Epochs: set by the search. Final test: 17 with the selected settings, 10 with the default settings."
    )


@pytest.mark.parametrize(
    ("gains", "new_differences", "changes"),
    [
        ((10.0, -7.0), None, "+10.3 base, -7.0 new."),
        (
            (10.0, -7.0),
            (-9.0, 3.0, -9.0, 3.0, -3.0),
            "+10.3 base, -3.0 new. The interval of the difference in new accuracy contains 0.",
        ),
        ((10.0, -7.0), (-6.5, 5.5, -6.5, 5.5, -0.5), ""),
        ((3.0, 2.0), None, ""),
        ((-3.0, -2.0), None, ""),
    ],
)
def test_the_evidence_names_a_rise_in_base_and_a_fall_in_new_accuracy(
    gains: tuple[float, float], new_differences: tuple[float, ...] | None, changes: str, tmp_path: Path
) -> None:
    records = small(tmp_path, *gains)
    assert records.final_test is not None
    if new_differences is not None:
        found = records.final_test.datasets["dtd"]
        selected = tuple(
            replace(run, new=(other.new or 0.0) + difference)
            for run, other, difference in zip(found.selected, found.baseline, new_differences, strict=True)
        )
        records = with_test(records, datasets={"dtd": replace(found, selected=selected)})
    lines = [line for line in evidence(records) if line.startswith("On average")]
    expected = f"On average, base accuracy rose and new accuracy fell: {changes}"
    assert lines == ([expected] if changes else [])


@pytest.mark.parametrize(
    ("detectable", "excludes_relevant", "sentences"),
    [
        (1.9, False, ["This test has 80% power to detect a true difference of 1.9 points in H."]),
        (
            0.4,
            True,
            [
                "This test has 80% power to detect a true difference of 0.4 points in H. "
                "The interval excludes differences of 1 point or more."
            ],
        ),
        (150.0, False, []),
    ],
)
def test_the_evidence_gives_the_difference_that_the_test_could_detect(
    detectable: float, excludes_relevant: bool, sentences: list[str], tmp_path: Path
) -> None:
    width = 0.5 if excludes_relevant else 2.0
    difference = Interval(0.1, -width, width, 5)
    records = with_test(small(tmp_path, 0, 0), detectable=detectable, min_relevant=1.0, difference=difference)
    assert [line for line in evidence(records) if line.startswith("This test")] == sentences


def test_with_several_datasets_a_sentence_generalizes_to_other_datasets(tmp_path: Path) -> None:
    test = final_test(candidate(1), {"dtd": (2, 1), "eurosat": (2, 1), "pets": (2, 2)})
    records = replace(small(tmp_path), final_test=replace(test, alpha=0.005))
    assert verdict_text(records).startswith("Use the selected settings")
    assert evidence(records)[0].startswith("Mean difference in H over 3 datasets and seed pairs")
    assert "n = 5)" in evidence(records)[0]
    (others,) = [line for line in evidence(records) if "random sample" in line]
    assert others.startswith(
        "If these datasets are a random sample, the mean difference in H on other datasets"
    )
    assert "n = 3)" in others
    assert "It does not cover other datasets" in caveats(records)[0]
    assert "selected settings, eurosat" in printed(records)


def test_without_a_final_test_there_is_no_verdict(tmp_path: Path) -> None:
    records = replace(small(tmp_path), final_test=None)
    assert verdict_text(records) == "No verdict yet. The final test has not finished."
    assert evidence(records)[0].startswith("Trial 1 is selected, with a search score of 69.56.")
    assert next_steps(records) == [("Rerun the same command to resume:", records.study.command)]


def test_without_trials_there_is_no_verdict(tmp_path: Path) -> None:
    nothing = replace(small(tmp_path), final_test=None, trials=(), confirmation=None)
    assert verdict_text(nothing) == "No verdict yet. No trial has finished."
    assert printed(nothing)


def test_a_final_test_of_a_trial_that_is_no_longer_selected_gives_no_verdict(tmp_path: Path) -> None:
    whole = small(tmp_path)
    assert whole.confirmation is not None
    outdated = replace(whole, confirmation=replace(whole.confirmation, selected_number=0))
    text = verdict_text(outdated)
    assert text == "No verdict yet. The final test compared trial 1, which is no longer selected."
    assert "base (%)" in printed(whole)
    assert "base (%)" not in printed(outdated), "the table of the final test"


def test_a_final_test_with_other_epochs_than_those_requested_gives_no_verdict(tmp_path: Path) -> None:
    # Confirmation and selected.yaml have the new number of epochs, but the final test was interrupted.
    records = replace(small(tmp_path), study=small(tmp_path, final_epochs=20).study)
    assert verdict_text(records) == "No verdict yet. The final test with 20 epochs per run has not finished."
    assert next_steps(records)[0][0] == "Rerun the same command to resume:"
    assert evidence(records)[-1] == "Epochs: 10 per trial, 20 per run of the confirmation and the final test."


@pytest.mark.parametrize(
    ("seeds", "reason"),
    [((), "No final test was requested"), ((1,), "Fewer than two seed pairs finished")],
)
def test_without_two_seed_pairs_the_verdict_is_use_either(
    seeds: tuple[int, ...], reason: str, tmp_path: Path
) -> None:
    test = final_test(candidate(1), {"dtd": (3, 2)}, seeds)
    records = replace(small(tmp_path), final_test=test)
    assert verdict_text(records).startswith(f"Use either. {reason}")
    assert printed(records)
    assert any("--final-seeds auto" in text for text, _ in next_steps(records)) == (not seeds)


def test_results_of_an_objective_that_reads_test_images_are_never_recommended(tmp_path: Path) -> None:
    for records in (
        small(tmp_path, objective="oracle_test"),
        small(tmp_path, -3, -2, objective="oracle_test"),
    ):
        assert verdict_text(records).startswith(
            "Do not use these results. The objective oracle_test reads the test"
        )
        assert not any(command for _, command in next_steps(records))
        assert "The objective oracle_test reads the test images." in printed(records)


@pytest.mark.parametrize(
    ("changes", "caveat"),
    [
        ({"earlier_tests": (3, 2)}, "The same test images were used earlier, to test trials 2 and 3."),
        ({"seeds": (0, 11)}, "The search and the final test share seed 0"),
        ({"extended_after": (2,)}, "--final-seeds was changed after a look at 2 seed pairs."),
    ],
)
def test_reused_test_images_shared_seeds_and_added_seeds_are_caveats(
    changes: dict[str, Any], caveat: str, tmp_path: Path
) -> None:
    assert any(line.startswith(caveat) for line in caveats(with_test(small(tmp_path), **changes)))
    assert not any(line.startswith(caveat) for line in caveats(small(tmp_path)))


def test_a_failed_run_with_the_selected_settings_is_the_reason_to_keep_the_defaults(
    tmp_path: Path,
) -> None:
    records = small(tmp_path)
    assert records.final_test is not None
    found = records.final_test.datasets["dtd"]
    selected = (*found.selected[:4], RunScore("dtd", 15, error="the loss is nan"))
    records = with_test(records, datasets={"dtd": replace(found, selected=selected)}, verdict="baseline")
    assert verdict_text(records) == (
        "Keep the default settings. The selected settings (trial 1) failed in 1 run of the final test."
    )
    assert "1 of 10 final-test runs failed (the loss is nan). A failed run with the" in caveats(records)[0]


def test_an_early_stop_of_a_sequential_test_is_a_caveat(tmp_path: Path) -> None:
    early = "The test stopped early, after 5 of up to 15 seed pairs."
    records = small(tmp_path)
    assert not any(line.startswith(early) for line in caveats(records)), "these seeds were given"
    assert any(line.startswith(early) for line in caveats(with_test(records, min_relevant=1.0)))


def test_more_trials_than_requested_are_not_a_fraction(tmp_path: Path) -> None:
    assert "Search: 4 of 60 trials (2 completed, 1 pruned, 1 failed)." in printed(small(tmp_path))
    assert "Search: 4 trials (2 completed" in printed(small(tmp_path, trials=2))


def test_failed_runs_and_trials_are_caveats(tmp_path: Path) -> None:
    records = small(tmp_path)
    assert records.final_test is not None
    found = records.final_test.datasets["dtd"]
    failed = (*found.baseline[:4], RunScore("dtd", 15, error="out of memory"))
    records = with_test(records, datasets={"dtd": DatasetTest(found.selected, failed, found.difference)})
    records = replace(records, trials=(trial(0, "FAIL", reason="killed"), trial(1), trial(9)))
    lines = caveats(records)
    assert lines[0] == "The baseline trial failed (killed). Rerun the same command to retry it."
    assert lines[1].startswith("1 of 10 final-test runs failed (out of memory).")
    assert len(lines) == 5, "more are left out"


@pytest.mark.parametrize(
    ("options", "caveat"),
    [
        ({}, "The search predicts new accuracy from drift"),
        ({"objective": "base_val"}, "The search maximized base accuracy. The final test compares H."),
        ({"dataset": ["textures"]}, "The bundled backbone mini is for testing."),
    ],
)
def test_the_objective_and_the_backbone_of_the_search_are_caveats(
    options: dict[str, Any], caveat: str, tmp_path: Path
) -> None:
    lines = caveats(small(tmp_path, **options))
    assert any(line.startswith(caveat) for line in lines)
    assert all(len(line) <= 200 for line in lines), "two lines each"


def test_a_narrow_terminal_shows_whole_intervals(tmp_path: Path) -> None:
    wide = Interval(-10.0, -126.3, +106.3, 2)
    records = small(tmp_path, 1, 2)
    assert records.final_test
    test = records.final_test.datasets["dtd"]
    test = replace(test, difference=wide, base_difference=wide, new_difference=wide)
    shown = printed(with_test(records, datasets={"dtd": test}), width=80)
    assert shown.count("[-126.3, +106.3]") >= 3
    assert "default settings" in shown
    assert max(len(line) for line in shown.splitlines() if "126.3" in line) <= 80
