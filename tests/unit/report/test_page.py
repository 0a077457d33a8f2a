"""The page and the notebook summary."""

import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from statistics import mean

import pytest

from tests.support.study_records import IMAGE, SCRIPT, rich, small
from tune.records.folder import Records, read_records
from tune.records.schema import RunScore, RunScores
from tune.report import page
from tune.report.formatting import format_mean
from tune.report.page import render, write_report
from tune.report.statements import caveats, evidence, next_steps, verdict_text


@pytest.fixture(autouse=True)
def _no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without the five megabytes of plotly.js."""
    monkeypatch.setattr(page, "get_plotlyjs", lambda: "")


class Tags(HTMLParser):
    """Tags and texts outside of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        is_code = bool(self.tags) and self.tags[-1] == "script"
        if not is_code:
            self.texts.append(data)


def text(records: Records) -> str:
    """Return the text of the page, without tags and scripts, with single spaces."""
    tags = Tags(render(records))
    words = " ".join(tags.texts).split()
    return " ".join(words)


def test_page_and_notebook_show_the_same_statements(tmp_path: Path) -> None:
    records = small(tmp_path)
    report = write_report(records)
    assert report.path == tmp_path / "report.html"
    for html in (report.path.read_text(), report._repr_html_()):
        shown = " ".join(unescape(html).split())
        lines = [verdict_text(records), *evidence(records), *caveats(records)]
        for line in [*lines, *(text for text, _ in next_steps(records))]:
            assert line in shown
        assert "Final test: test images" in shown
    assert "<script" not in report._repr_html_()
    assert report.path.read_text() == render(records), "deterministic"


@pytest.mark.parametrize("goals", [("objective",), ("base", "new"), ("objective", "seconds")])
def test_sections_of_a_whole_study(goals: tuple[str, ...], tmp_path: Path) -> None:
    records = read_records(rich(tmp_path, goals=goals))
    found = set(re.findall(r'id="plot-([\w-]+)"', render(records)))
    plots = {"history", "importance", "slice-1", "slice-2", "curves", "accuracies", "tested", "pairs"}
    plots |= {"confusion-1", "confusion-2", "calibration-1", "calibration-2"}
    assert found == plots | ({"pareto"} if len(goals) > 1 else set())
    shown = text(records)
    for title in ("Settings", "Trials", "Cost", "Configuration", "Confirmation (score as in the search"):
        assert title in shown
    assert "60 of 60 trials: 43 completed, 15 pruned, 2 failed." in shown
    assert "the loss is nan, class 'zig'" in shown
    assert "out of memory: larger share" in shown
    assert "0.5 .. 200 (log) if regularizer.kind = l1 or l2" in shown


@pytest.mark.parametrize("left", ["nothing", "baseline", "failed", "search", "confirmation"])
def test_a_partial_study_has_a_page(left: str, tmp_path: Path) -> None:
    whole = small(tmp_path)
    trials = {"nothing": (), "baseline": whole.trials[:1], "failed": whole.trials[3:]}
    records = replace(
        whole,
        trials=trials.get(left, whole.trials),
        confirmation=whole.confirmation if left == "confirmation" else None,
        final_test=None,
    )
    assert "No verdict yet." in text(records)
    assert verdict_text(records) in write_report(records)._repr_html_()


def test_hostile_names_are_text(tmp_path: Path) -> None:
    records = read_records(rich(tmp_path, hostile=True))
    html = render(records)
    tags = Tags(html)
    assert f"dtd{SCRIPT}" in "".join(tags.texts)
    assert f"eurosat{IMAGE}" in "".join(tags.texts)
    for part in (html, write_report(records)._repr_html_()):
        assert SCRIPT not in part
        assert "<img" not in part
    assert not {"img", "iframe", "link"} & set(tags.tags)
    assert not [name for name, _ in tags.attributes if name.startswith("on") or name in ("src", "href")]


def test_a_page_needs_no_network(tmp_path: Path) -> None:
    html = render(small(tmp_path))
    address = r"""["']?(https?:)?//"""  # with or without quotes, with or without a scheme
    loads = rf"(src|href|url)\s*[=(]\s*{address}"  # an attribute src or href, or url(...) of a style
    assert not re.search(loads, html)


@pytest.mark.parametrize("published", [None, 70.4])
def test_published_numbers_appear_with_their_caveat(published: float | None, tmp_path: Path) -> None:
    records = small(tmp_path)
    assert records.final_test is not None
    found = replace(records.final_test.datasets["dtd"], published=published)
    records = replace(records, final_test=replace(records.final_test, datasets={"dtd": found}))
    assert ("70.40" in text(records)) == (published is not None)
    assert ("Published numbers are cited from papers." in text(records)) == (published is not None)


def test_costs_add_up(tmp_path: Path) -> None:
    records = small(tmp_path)
    shown = text(records)
    assert "search 6 1:30:00 3.00 0.75" in shown  # six runs of 900 seconds, two CPUs, half a GPU
    assert "final test 10 2:30:00 5.00 1.25" in shown


def test_the_confirmation_shows_only_the_seeds_that_count(tmp_path: Path) -> None:
    """If reruns have more epochs than the trials, the runs of the trials do not count.

    Then candidates have only runs with the fresh seeds.
    """
    records = read_records(rich(tmp_path))
    assert "search fresh seeds all seeds" in text(records)
    confirmation = records.confirmation
    assert confirmation is not None
    candidates = []
    for candidate in confirmation.candidates:
        reruns = tuple(run for run in candidate.runs if run.seed in confirmation.seeds)
        candidates.append(replace(candidate, runs=reruns))
    longer = replace(records, confirmation=replace(confirmation, candidates=tuple(candidates)))
    shown = text(longer)
    start = shown.index("Confirmation (score")
    end = shown.index("Caveats", start)
    assert "all seeds" not in shown[start:end]
    best = max(candidates, key=lambda each: each.mean or 0.0)
    assert f"search fresh seeds trial {best.number}" in shown
    assert f" {format_mean(best.mean_by_seed.values())} " in shown


def test_the_page_shows_metrics_and_the_accuracy_of_each_class(tmp_path: Path) -> None:
    records = small(tmp_path)
    shown = text(records)
    for title in ("Other metrics of the final test", "Confusion matrix", "Calibration", "Accuracy by class"):
        assert title in shown
    assert records.final_test is not None
    runs = records.final_test.datasets["dtd"].baseline
    accuracy = mean(run.metrics["new"].class_accuracies[1] for run in runs)
    assert f"zigzagged new {accuracy:.2f}" in shown


def test_a_final_test_without_metrics_has_a_page(tmp_path: Path) -> None:
    """Version 0.2 recorded none."""
    records = small(tmp_path)
    assert records.final_test is not None

    def without_metrics(runs: RunScores) -> RunScores:
        return tuple(replace(run, metrics={}, joint_accuracies={}) for run in runs)

    found = records.final_test.datasets["dtd"]
    found = replace(found, selected=without_metrics(found.selected), baseline=without_metrics(found.baseline))
    test = replace(records.final_test, datasets={"dtd": found})
    shown = text(replace(records, final_test=test))
    assert "Confusion matrix" not in shown
    assert "Accuracy by class" not in shown
    assert "Seed pairs of the final test" in shown


def test_a_dataset_with_too_many_classes_for_a_confusion_matrix_has_only_the_other_plots(
    tmp_path: Path,
) -> None:
    records = small(tmp_path)
    assert records.final_test is not None

    def without_confusion(runs: RunScores) -> RunScores:
        changed: list[RunScore] = []
        for run in runs:
            metrics = {part: run.metrics[part].model_copy(update={"confusion": None}) for part in run.metrics}
            changed.append(replace(run, metrics=metrics))
        return tuple(changed)

    dtd = records.final_test.datasets["dtd"]
    dtd = replace(dtd, selected=without_confusion(dtd.selected), baseline=without_confusion(dtd.baseline))
    test = replace(records.final_test, datasets={"dtd": dtd})
    html = render(replace(records, final_test=test))
    assert 'id="plot-confusion-1"' not in html
    assert 'id="plot-calibration-1"' in html


def test_the_page_names_base_and_new_classes(tmp_path: Path) -> None:
    shown = text(small(tmp_path))
    assert "base classes banded, blotchy (trained and tested)" in shown
    assert "new classes waffled, zigzagged (only tested)" in shown
