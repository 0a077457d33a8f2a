"""The live view: a line per ended job, or a bar and the running jobs. Time left, from completed epochs."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.support.fake_trial import fake_job
from tune.execution.job import Job
from tune.execution.live import LiveView
from tune.execution.progress import StageProgress
from tune.records.schema import EpochReport, RunScore

NUM_EPOCHS = 5  # of each job


class Stage:
    """A stage of a search, with its view and a clock that a test sets.

    Args:
        total: Number of jobs.
        done: Number of jobs that ended in earlier processes.
        terminal: True for a view on a terminal.
        options: Further options of `StageProgress`.

    Attributes:
        now: Time in seconds since the start of the stage.
    """

    def __init__(self, total: int = 4, done: int = 0, *, terminal: bool = False, **options: Any) -> None:
        self.out = io.StringIO()
        self.now = 0.0
        self.console = Console(file=self.out, force_terminal=terminal, width=100, color_system=None)
        self.progress = StageProgress("Search", total, done, clock=lambda: self.now, **options)
        self.view = LiveView(self.console, self.progress)

    def job(self, number: int) -> Job:
        return fake_job(Path("/study"), number, epochs=NUM_EPOCHS)

    def start(self, *numbers: int) -> None:
        """Start trials."""
        for number in numbers:
            for observer in (self.progress, self.view):
                observer.started(self.job(number))

    def epochs(self, number: int, *objectives: float, first: int = 1, notes: tuple[str, ...] = ()) -> None:
        """Report the objectives of consecutive epochs of a trial, from the epoch `first`."""
        for epoch, objective in enumerate(objectives, start=first):
            runs = (RunScore("textures", 0, objective=objective),)
            report = EpochReport(epoch, runs, finished=epoch == NUM_EPOCHS, notes=notes)
            for observer in (self.progress, self.view):
                observer.reported(self.job(number), report)

    def end(self, number: int, now: float, failure: str = "") -> None:
        """End a trial at a time in seconds."""
        self.now = now
        for observer in (self.progress, self.view):
            observer.finished(self.job(number), failure)

    def finish_trial_0(self) -> None:
        """Start and finish trial 0 in ten seconds. Its objective is 64."""
        self.start(0)
        self.epochs(0, 60, 61, 62, 63, 64)
        self.end(0, 10.0)

    @property
    def lines(self) -> list[str]:
        """Lines that have been printed."""
        return self.out.getvalue().splitlines()

    @property
    def shown(self) -> list[str]:
        """Lines that the view on a terminal shows now."""
        with self.console.capture() as capture:
            self.console.print(self.view._render())
        return [line.rstrip() for line in capture.get().splitlines()]


def test_without_a_terminal_each_finished_job_is_a_line() -> None:
    stage = Stage()
    with stage.view:
        stage.start(0, 1, 2)
        stage.epochs(0, 60, 61, 62, 63, 64)
        stage.end(0, 42.0)
        stage.epochs(1, 50, 51)
        stage.end(1, 60.0)
        stage.epochs(2, 99, 99)
        stage.end(2, 3700.0, "suite:leaves: nan\nin step 7")

    assert stage.lines == [
        "[0:42] trial 0 finished, objective 64.0; 1 of 4 done; best 64.0 (trial 0); 2:06 left",
        "[1:00] trial 1 pruned at epoch 2/5, objective 51.0; 2 of 4 done; best 64.0 (trial 0); 1:00 left",
        "[1:01:40] trial 2 failed: suite:leaves: nan in step 7; 3 of 4 done; best 64.0 (trial 0); 20:33 left",
    ]


def test_a_better_score_of_an_earlier_process_stays_the_best() -> None:
    stage = Stage(best=(70.0, "trial 9"), done=2)
    stage.finish_trial_0()
    assert "3 of 4 done; best 70.0 (trial 9); 0:10 left" in stage.lines[0]


def test_scores_that_are_not_comparable_have_no_best() -> None:
    stage = Stage(has_best=False)
    stage.finish_trial_0()
    assert "best" not in stage.lines[0]


def test_a_job_takes_the_first_free_slot() -> None:
    stage = Stage()
    stage.start(0, 1)
    stage.end(0, 10.0)
    stage.start(2)

    slots = {name: progress.slot for name, progress in stage.progress.running.items()}
    assert slots == {"trial 1": 2, "trial 2": 1}


def test_jobs_have_finished_were_pruned_or_have_failed() -> None:
    stage = Stage()
    stage.finish_trial_0()
    stage.start(1, 2)
    stage.epochs(1, 50)
    stage.end(1, 20.0)
    stage.end(2, 30.0, "out of memory")

    assert [each.outcome for each in stage.progress.ended] == ["finished", "pruned", "failed"]


def test_before_the_first_epoch_a_terminal_shows_no_time_left() -> None:
    stage = Stage(total=2, terminal=True)
    stage.start(0)

    summary, running = stage.shown
    assert summary.split() == ["Search", "0", "of", "2", "done"]
    assert running == "  trial 0: epoch 0/5"


def test_on_a_terminal_a_bar_the_time_left_and_the_running_jobs_are_shown() -> None:
    stage = Stage(total=2, terminal=True)
    stage.start(0)
    stage.epochs(0, 60, 61)
    stage.now = 20.0

    summary, running = stage.shown
    assert summary.startswith("Search ━━━━━━ ")
    assert summary.endswith("0 of 2 done, 1:20 left"), "two of ten epochs took 20 s"
    assert running == "  trial 0: epoch 2/5, objective 61.0"


def test_on_a_terminal_only_failed_jobs_are_printed() -> None:
    stage = Stage(total=2, terminal=True)
    stage.finish_trial_0()
    assert stage.lines == [], "the bar shows finished jobs"

    stage.start(1)
    stage.end(1, 60.0, "out of memory")
    (line,) = stage.lines
    assert "trial 1 failed: out of memory; 2 of 2 done" in line, "a bar cannot show reasons"


def test_a_note_of_a_new_worker_is_printed() -> None:
    stage = Stage()
    stage.start(0)
    stage.epochs(0, 60, notes=("started over: the checkpoint is corrupt",))
    assert stage.lines == ["[0:00] trial 0: started over: the checkpoint is corrupt"]


def test_epochs_that_a_new_worker_repeats_count_once() -> None:
    stage = Stage(total=2)
    stage.start(0)
    stage.epochs(0, 60, 61)
    stage.epochs(0, 60)  # the new worker starts over
    stage.now = 30.0
    assert stage.progress.seconds_left == pytest.approx(270), "one of ten epochs took 30 s"
