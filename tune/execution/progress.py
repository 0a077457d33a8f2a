"""What a search shows while it runs: a live view on a terminal, one line an ended trial elsewhere."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray.tune import Callback
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from prometar.errors import one_line
from tune.jobs.spec import jobs_in
from tune.optimizer.ask_tell import Memory
from tune.results.reader import STATES
from tune.results.schema import State, TrialRecord, by_score
from tune.study_spec import StudySpec

READ_SECONDS = 1.0  # between two looks at the memory, which may be a database


@dataclass(frozen=True)
class _Running:
    """A running trial's last report; `first` is the epoch it had behind it when this process took it on."""

    of_epochs: int
    first: int | None = None
    epoch: int = 0
    objective: float | None = None


class Progress(Callback):
    """Shows how far a search is.

    Args:
        memory: Whose trials are shown; it is asked for those that have ended, at most once a second.
        spec: What the study is asked; the best settings are shown by how they differ from the released ones.
        console: A live view where it is a terminal, else one line an ended trial.
        clock: Seconds (default time.monotonic).
    """

    def __init__(
        self,
        memory: Memory,
        spec: StudySpec,
        *,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._memory, self._epochs = memory, spec.most_epochs
        self._target = spec.trials + len(memory.forgiven)
        self._console, self._clock = console, clock
        self._reference, self._bounds = spec.reference(), spec.bounds
        self._begin = self._read = clock()
        self._ended: set[int] = set()
        self._states: Counter[State] = Counter()
        self._best: TrialRecord | None = None
        for trial in memory.ended():
            self._count(trial)
        self._ended_before = len(self._ended)
        self._running: dict[int, _Running] = {}
        self._due = False  # a trial has ended, and its line is not out
        self._live: Live | None = None

    def begin(self) -> None:
        """Show the search from now on, until `end`."""
        self._begin = self._clock()
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(self._view(), console=self._console, auto_refresh=False)
            self._live.start()

    def end(self) -> None:
        """Show what has ended last, and give the terminal back. Safe to call twice."""
        try:
            self._catch_up()
        finally:
            if self._live:
                self._live.stop()
                self._live = None

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        for number in {job.number for job in jobs_in(trial.config)} - self._ended:
            self._running.setdefault(number, _Running(self._epochs))

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        jobs, epoch, objective = jobs_in(trial.config), result.get("epoch"), result.get("objective")
        number = jobs[result.get("member", 0)].number
        self._due |= len(jobs) > 1  # Tune hears only of the end of all
        if epoch is None or objective is None or number in self._ended:
            return
        first = self._running.get(number, _Running(self._epochs)).first
        before, of_epochs = epoch - 1 if first is None else first, result.get("of_epochs", self._epochs)
        self._running[number] = _Running(of_epochs, before, epoch, float(objective))

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._due = True

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._due = True
        for job in jobs_in(trial.config):
            self._running.pop(job.number, None)  # of a crew, each waits to be tried alone

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        if self._clock() - self._read >= READ_SECONDS and (self._due or self._live):
            self._catch_up()

    def _catch_up(self) -> None:
        """Ask the memory for what has ended since, and show it."""
        self._read, self._due = self._clock(), False
        for trial in self._memory.ended(len(self._ended)):
            self._count(trial)
            self._running.pop(trial.number, None)
            if self._live is None or trial.state == "FAIL":  # the view has no place for reasons
                self._print(trial)
        if self._live:
            self._live.update(self._view(), refresh=True)

    def _count(self, trial: TrialRecord) -> None:
        self._ended.add(trial.number)
        self._states[trial.state] += 1
        leading = [trial] if self._best is None else [self._best, trial]
        self._best = next(iter(by_score(leading, self._bounds)), None)

    def _print(self, trial: TrialRecord) -> None:
        elapsed = _clock_text(self._clock() - self._begin, minutes=2)
        done = f"{len(self._ended)} of {self._target} done{self._left_text()}"
        parts = [f"[{elapsed}] {self._ending(trial)}", self._best_text(), done]
        line = "; ".join(part for part in parts if part)
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _ending(self, trial: TrialRecord) -> str:
        text = f"trial {trial.number} {STATES[trial.state]}"
        if trial.state == "FAIL":
            return f"{text}: {one_line(trial.reason or 'no reason recorded')}"
        last = trial.epochs[-1] if trial.epochs else None
        if trial.state == "PRUNED":
            text += f" at epoch {last.epoch if last else 0}/{self._epochs}"
        return text if last is None else f"{text}, objective {last.objective:.1f}"

    def _best_text(self) -> str:
        best = self._best
        return f"best {best.score:.1f} (trial {best.number})" if best else ""

    def _left_text(self) -> str:
        seconds = self._seconds_left()
        return f", {_clock_text(seconds)} left" if seconds else ""

    def _seconds_left(self) -> float | None:
        """Elapsed time, scaled from the trials' worth done by this process to what is left; None if unknown.

        A running trial counts by its epochs: else several at a time would look slower than they are.
        """
        here = len(self._ended) - self._ended_before
        if not here:
            return None
        running = self._running.values()
        begun = sum((run.epoch - run.first) / run.of_epochs for run in running if run.first is not None)
        left = self._target - len(self._ended) - sum(run.epoch / run.of_epochs for run in running)
        return max(0.0, left) * (self._clock() - self._begin) / (here + begun)

    def _view(self) -> Group:
        """The live view: counts, best, pace, and a line a running trial."""
        failed, pruned = self._states["FAIL"], self._states["PRUNED"]
        counts = f"{len(self._running)} running, {pruned} pruned, {failed} failed"
        done = f"{len(self._ended)} of {self._target} trials done"
        lines = [f"{done}: {counts}", *self._best_lines(), self._pace()]
        for number, run in sorted(self._running.items()):
            value = "" if run.objective is None else f", objective {run.objective:.1f}"
            lines.append(f"  trial {number}: epoch {run.epoch}/{run.of_epochs}{value}")
        return Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in lines))

    def _best_lines(self) -> list[str]:
        if self._best is None:
            return ["no trial has finished yet"]
        if self._best.reference:
            return [f"{self._best_text()}, the released settings"]
        settings, known = self._best.settings, self._reference
        changed = [f"{key} {_setting(v)}" for key, v in settings.items() if known.get(key) != v]
        return [f"{self._best_text()}: {', '.join(changed)}"]

    def _pace(self) -> str:
        elapsed = self._clock() - self._begin
        here = len(self._ended) - self._ended_before
        pace = f", {60 * here / elapsed:.1f} trials a minute" if here and elapsed > 0 else ""
        return f"{_clock_text(elapsed)} gone{pace}{self._left_text()}"


def _setting(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else one_line(str(value))


def _clock_text(seconds: float, *, minutes: int = 1) -> str:
    """m:ss, or h:mm:ss from an hour on.

    Example:
        >>> _clock_text(80), _clock_text(42, minutes=2), _clock_text(3661)
        ('1:20', '00:42', '1:01:01')
    """
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
    return f"{whole // 60:0{minutes}d}:{whole % 60:02d}"
