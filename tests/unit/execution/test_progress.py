"""The progress of a search, driven without Ray's runtime."""

import io
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from tests.support.driver import small_spec
from tests.support.trials import ended
from tune.execution.progress import Progress
from tune.jobs.spec import Job, Leg
from tune.results.schema import State, TrialRecord


def trial(number: int, state: State, curve: list[float], lr: float = 1.0, **changes: Any) -> TrialRecord:
    return ended(number, state, curve, settings={"optim.lr": lr}, **changes)


def tune_trial(number: int) -> Any:
    """One of Tune's, whose worker trains the study's trial of this number."""
    return SimpleNamespace(config={"jobs": [Job("/run", (Leg({}),), "drift", number=number)]})


class Study:
    """A memory, a clock and a driver of the callback."""

    forgiven = frozenset[int]()

    def __init__(
        self, known: list[TrialRecord] | None = None, *, terminal: bool = False, target: int = 4
    ) -> None:
        self.known: dict[int, TrialRecord] = {t.number: t for t in known or []}
        self.now, self.reads = 0.0, 0
        self.out = io.StringIO()
        console = Console(file=self.out, force_terminal=terminal, width=100, color_system=None)
        self.progress = Progress(
            self, small_spec(trials=target, epochs=5), console=console, clock=lambda: self.now
        )
        self.progress.begin()

    def ended(self, since: int = 0) -> list[TrialRecord]:
        self.reads += 1
        return list(self.known.values())[since:]

    def start(self, number: int) -> None:
        self.progress.on_trial_start(0, [], tune_trial(number))

    def result(self, number: int, **result: Any) -> None:
        self.progress.on_trial_result(0, [], tune_trial(number), result)

    def end(self, trial: TrialRecord, now: float, *, error: bool = False) -> None:
        self.known[trial.number] = trial
        hook = self.progress.on_trial_error if error else self.progress.on_trial_complete
        hook(0, [], tune_trial(trial.number))
        self.step(now)

    def step(self, now: float) -> None:
        self.now = now
        self.progress.on_step_end(0, [])

    @property
    def lines(self) -> list[str]:
        return self.out.getvalue().splitlines()


def test_a_line_an_ended_trial() -> None:
    study = Study(target=4)
    study.start(0)
    study.result(0, epoch=1, objective=50.0)
    study.end(trial(0, "COMPLETE", [50.0, 58.31], reference=True), 20.0)
    study.end(trial(1, "PRUNED", [40.0, 41.24]), 40.0)
    study.end(trial(2, "FAIL", [], reason="the loss is nan\nin [bold]step[/bold] 3"), 42.0, error=True)
    study.end(trial(3, "COMPLETE", [61.0]), 3700.0)
    study.progress.end()
    assert study.lines == [
        "[00:20] trial 0 finished, objective 58.3; best 58.3 (trial 0); 1 of 4 done, 1:00 left",
        "[00:40] trial 1 pruned at epoch 2/5, objective 41.2; best 58.3 (trial 0); 2 of 4 done, 0:40 left",
        "[00:42] trial 2 failed: the loss is nan in [bold]step[/bold] 3; best 58.3 (trial 0); "
        "3 of 4 done, 0:14 left",
        "[1:01:40] trial 3 finished, objective 61.0; best 61.0 (trial 3); 4 of 4 done",
    ]


def test_no_best_before_a_trial_has_finished() -> None:
    study = Study(target=1)
    study.end(trial(0, "FAIL", []), 5.0)
    assert study.lines == ["[00:05] trial 0 failed: no reason recorded; 1 of 1 done"]


def test_earlier_trials_are_counted_but_not_printed_or_timed() -> None:
    study = Study([trial(0, "COMPLETE", [70.0])], target=3)
    study.end(trial(1, "COMPLETE", [60.0]), 10.0)
    assert study.lines == [
        "[00:10] trial 1 finished, objective 60.0; best 70.0 (trial 0); 2 of 3 done, 0:10 left"
    ]


def test_running_trials_count_by_their_epochs() -> None:
    study = Study(target=4)
    for number in (0, 1):
        study.start(number)
    study.result(1, epoch=5, objective=1.0)  # a trial that went on: four epochs are not of this process
    study.end(trial(0, "COMPLETE", [60.0]), 60.0)
    assert study.lines[0].endswith("1 of 4 done, 1:40 left")  # 60 s for 1.2 trials, 2 are left


def test_each_trial_counts_by_its_own_epochs() -> None:
    study = Study(target=4)
    for number in (0, 1):
        study.start(number)
    study.result(1, epoch=1, objective=1.0, of_epochs=2)
    study.end(trial(0, "COMPLETE", [60.0]), 60.0)
    assert study.lines[0].endswith("1 of 4 done, 1:40 left")  # 60 s for 1.5 trials, 2.5 are left


def test_the_memory_is_read_when_a_trial_ended_and_once_a_second_at_most() -> None:
    study = Study()
    before = study.reads
    for tenth in range(50):
        study.step(tenth / 10)
    assert study.reads == before  # nothing ended
    study.end(trial(0, "COMPLETE", [60.0]), 5.0)
    study.end(trial(1, "COMPLETE", [61.0]), 5.5)
    assert study.reads == before + 1
    study.progress.end()
    assert [line.split()[2] for line in study.lines] == ["0", "1"]


def test_what_only_the_end_tells_is_printed_then() -> None:
    study = Study()
    study.known[0] = trial(0, "FAIL", [], reason="out of memory")
    study.progress.end()
    assert study.lines[0].startswith("[00:00] trial 0 failed: out of memory")


def test_the_live_view() -> None:
    study = Study([trial(0, "COMPLETE", [60.0], lr=0.0025, reference=True)], terminal=True, target=8)
    study.start(1)
    study.start(2)
    study.result(2, epoch=3, objective=55.55)
    study.result(2, failed="so no epoch")
    study.end(trial(3, "COMPLETE", [64.0], lr=0.012345), 30.0)
    study.end(trial(4, "FAIL", [], reason="the loss is nan"), 60.0)
    view = shown(study.progress)
    study.progress.end()
    study.progress.end()
    assert view == [
        "3 of 8 trials done: 2 running, 0 pruned, 1 failed",
        "best 64.0 (trial 3): optim.lr 0.0123",
        "1:00 gone, 2.0 trials a minute, 2:00 left",
        "  trial 1: epoch 0/5",
        "  trial 2: epoch 3/5, objective 55.5",
    ]
    assert study.out.getvalue().count("trial 4 failed: the loss is nan") == 1
    assert "\x1b[?25h" in study.out.getvalue()  # the cursor is back


def test_the_live_view_of_a_study_that_begins_and_of_released_settings_that_lead() -> None:
    study = Study(terminal=True)
    assert shown(study.progress)[:2] == [
        "0 of 4 trials done: 0 running, 0 pruned, 0 failed",
        "no trial has finished yet",
    ]
    study.end(trial(0, "COMPLETE", [60.0], reference=True), 30.0)
    assert shown(study.progress)[1] == "best 60.0 (trial 0), the released settings"
    study.progress.end()


def shown(progress: Progress) -> list[str]:
    console = Console(file=io.StringIO(), width=100)
    with console.capture() as capture:
        console.print(progress._view())
    return [line.rstrip() for line in capture.get().splitlines()]
