"""The page of a running study: current, self-refreshing, and never a reason to fail."""

import io
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prometar.errors import InfrastructureError
from tests.support.driver import NAME, run_fake
from tests.support.fake_trial import fake_job
from tests.support.study_records import small, write
from tune.execution.job import Job
from tune.execution.progress import StageProgress
from tune.records.folder import StudyFolder, read_records
from tune.records.schema import EpochReport, RunScore
from tune.records.timeline import FILE_NAME, read_timeline
from tune.report import live_page, page
from tune.report.live_page import LivePage

REFRESH = '<meta http-equiv="refresh"'


@pytest.fixture(autouse=True)
def _without_plotly_js(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without the five megabytes of plotly.js."""
    monkeypatch.setattr(page, "get_plotlyjs", lambda: "")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Folder of a study without a final test."""
    records = small(tmp_path)
    write(tmp_path, records)
    (tmp_path / "finals.json").unlink()
    return tmp_path


NUM_EPOCHS = 5  # of each job


class Stage:
    """A stage of a search with its page. Three of 24 trials have ended before.

    Args:
        folder: Folder of the study.
        interval_seconds: Minimum time between two versions of the page.

    Attributes:
        out: What is printed.
        report: Path of the page.
    """

    def __init__(self, folder: Path, *, interval_seconds: float = 0.02) -> None:
        self.out = io.StringIO()
        console = Console(file=self.out, width=200)
        self.page = LivePage(StudyFolder(folder), console, interval_seconds=interval_seconds)
        self.progress = StageProgress("Search", total=24, done=3, best=(61.25, "trial 2"))
        self.report = folder / "report.html"

    def job(self, number: int) -> Job:
        return fake_job(Path("/study"), number, epochs=NUM_EPOCHS)

    def start(self, number: int) -> None:
        """Start a trial."""
        for observer in (self.progress, self.page):
            observer.started(self.job(number))

    def epoch(self, number: int, epoch: int, objective: float) -> None:
        """Report an epoch of a trial."""
        runs = (RunScore("dtd", 0, objective=objective),)
        report = EpochReport(epoch, runs, finished=epoch == NUM_EPOCHS)
        for observer in (self.progress, self.page):
            observer.reported(self.job(number), report)

    def end(self, number: int, failure: str = "") -> None:
        """End a trial."""
        for observer in (self.progress, self.page):
            observer.finished(self.job(number), failure)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, at most 30 s."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


def test_the_page_of_a_running_study_shows_its_progress(study: Path) -> None:
    stage = Stage(study)
    stage.start(4)
    stage.epoch(4, 2, 57.5)
    with stage.page:
        stage.page.follow(stage.progress)
        wait_until(stage.report.exists)
        html = stage.report.read_text()

    assert REFRESH in html
    assert "3 of 24 done, best 61.2 (trial 2)" in html
    for cell in ("trial 4", "2 of 5", "57.50"):
        assert f">{cell}</td>" in html
    assert "not started" in html, "the final test"
    assert "plot-timeline" in html
    assert "Rerun the same command" not in html, "the study is running"


def test_the_page_is_updated_when_a_job_ends(study: Path) -> None:
    stage = Stage(study)
    stage.start(4)
    with stage.page:
        stage.page.follow(stage.progress)
        wait_until(stage.report.exists)
        stage.epoch(4, NUM_EPOCHS, 63.0)
        stage.end(4)
        wait_until(lambda: "4 of 24 done, best 63.0 (trial 4)" in stage.report.read_text())


def test_the_page_is_rewritten_only_after_the_interval(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[object] = []
    monkeypatch.setattr(live_page, "write_report", lambda records, progress: written.append(progress))
    stage = Stage(study, interval_seconds=3600)
    stage.page.follow(stage.progress)
    wait_until(lambda: bool(written))

    for number in range(5):
        stage.start(number)
        stage.end(number)
    time.sleep(0.2)
    assert len(written) == 1

    stage.page.close()
    assert len(written) == 2, "the last page"


def test_the_page_of_a_stopped_study_does_not_reload(study: Path) -> None:
    stage = Stage(study)
    stage.start(4)
    with stage.page:
        stage.page.follow(stage.progress)
        wait_until(stage.report.exists)
    html = stage.report.read_text()
    assert REFRESH not in html
    assert "Rerun the same command to resume" in html


def test_a_page_that_cannot_be_written_is_reported_once_and_tried_again(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_attempts = 0

    def refuse(*_: object) -> None:
        nonlocal num_attempts
        num_attempts += 1
        raise InfrastructureError("Cannot write report.html: no space left on device")

    monkeypatch.setattr(live_page, "write_report", refuse)
    stage = Stage(study)
    with stage.page:
        stage.page.follow(stage.progress)
        wait_until(lambda: num_attempts > 2)

    message = "Cannot update report.html, but the study continues: Cannot write report.html: no space left"
    assert stage.out.getvalue().count(message) == 1


def test_the_timeline_contains_finished_failed_and_interrupted_jobs(study: Path) -> None:
    stage = Stage(study)
    with stage.page:
        stage.page.follow(stage.progress)
        for number in range(4, 7):
            stage.start(number)
        stage.epoch(4, NUM_EPOCHS, 63.0)
        stage.end(4)
        stage.end(5, "out of memory")
        stage.epoch(6, 1, 50.0)

    timeline = read_records(study).timeline
    assert [(entry.job, entry.slot, entry.outcome) for entry in timeline] == [
        ("trial 4", 1, "finished"),
        ("trial 5", 2, "failed"),
        ("trial 6", 3, "interrupted"),
    ]
    assert {entry.stage for entry in timeline} == {"Search"}


def test_lines_of_the_timeline_that_are_cut_or_invalid_are_ignored(study: Path) -> None:
    stage = Stage(study)
    with stage.page:
        stage.page.follow(stage.progress)
        stage.start(4)
        stage.end(4)
    file = study / FILE_NAME
    line = file.read_text()
    cut_line = line[:20]

    file.write_text(f"{line}[]\nnot JSON\n{line}{cut_line}")

    assert len(read_timeline(study)) == 2


def test_a_study_has_one_timeline_entry_per_job(tmp_path: Path) -> None:
    run_fake(tmp_path, top=1)

    folder = tmp_path / NAME
    entries = read_timeline(folder)
    num_entries = Counter(entry.stage for entry in entries)
    assert num_entries == {"Search": 4, "Confirmation": 4, "Final test": 2}
    jobs = {entry.job for entry in entries}
    assert len(jobs) == len(entries), "no job has two entries"

    html = (folder / "report.html").read_text()
    assert "plot-timeline" in html
    assert REFRESH not in html, "the study has ended"


def test_a_study_with_broken_pages_has_the_same_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def results(folder: Path) -> Any:
        return json.loads((folder / NAME / "finals.json").read_text())["datasets"]

    def refuse(*_: object) -> None:
        raise RuntimeError("broken")

    run_fake(tmp_path / "undisturbed")
    monkeypatch.setattr(live_page, "write_report", refuse)
    monkeypatch.setattr(live_page, "append_entry", refuse)
    run_fake(tmp_path / "broken")

    assert results(tmp_path / "broken") == results(tmp_path / "undisturbed")


def test_an_entry_after_a_cut_line_is_read(study: Path) -> None:
    stage = Stage(study)
    with stage.page:
        stage.page.follow(stage.progress)
        stage.start(4)
        stage.end(4)
        file = study / FILE_NAME
        cut_line = file.read_text()[:20]
        file.write_text(cut_line)

        stage.start(5)
        stage.end(5)
    assert [entry.job for entry in read_timeline(study)] == ["trial 5"]
