"""Live view of a stage: progress, best score and time left."""

import sys
import time
from collections.abc import Callable
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from prometar.errors import one_line
from tune.execution.jobs import Job
from tune.records.schema import EpochReport


class LiveView:
    """Progress of one stage: a bar on a terminal, otherwise one line per finished job.

    Use it as a context manager around `run_jobs`, as one of its observers.

    Args:
        stage: "Search", "Confirmation" or "Final test".
        total: Jobs of the stage. done: Jobs that finished earlier. Both may be changed meanwhile.
        best: Best objective so far and the name of its job.
        compared: True if the best objective is shown.
    """

    def __init__(
        self,
        console: Console,
        stage: str,
        total: int,
        done: int = 0,
        *,
        best: tuple[float, str] | None = None,
        compared: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._stage, self.total, self.done = console, stage, total, done
        self._best, self._compared, self._clock = best, compared, clock
        self._start = clock()
        self._running: dict[str, tuple[Job, EpochReport]] = {}  # a job and its last report
        self._finished = 0  # by this process
        terminal = console.is_terminal and not console.is_dumb_terminal
        self._live = (
            Live(console=console, refresh_per_second=2, get_renderable=self._view) if terminal else None
        )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def started(self, job: Job) -> None:
        self._running[job.name] = job, EpochReport()

    def reported(self, job: Job, report: EpochReport) -> None:
        self._running[job.name] = job, report
        for note in report.notes if report.epoch == 1 else ():
            self._print(f"{job.name}: {note}")

    def finished(self, job: Job, failure: str) -> None:
        _, report = self._running.pop(job.name, (job, EpochReport()))
        self.done += 1
        self._finished += 1
        failure, objective = failure or report.failed, report.objective
        complete = report.finished and not failure
        if complete and objective is not None and (self._best is None or objective > self._best[0]):
            self._best = objective, job.name
        if failure or self._live is None:
            how = "finished" if report.finished else f"pruned at epoch {report.epoch}/{job.epochs}"
            ending = f"failed: {one_line(failure)}" if failure else how + _objective(report)
            self._print("; ".join((f"{job.name} {ending}", *self._state())))

    def _print(self, line: str) -> None:
        elapsed = duration(self._clock() - self._start)
        self._console.print(f"[{elapsed}] {line}", markup=False, highlight=False, soft_wrap=True)

    def _state(self) -> list[str]:
        """Counts, best objective, and the elapsed time scaled to the jobs that are left."""
        state = [f"{self.done} of {self.total} done"]
        if self._compared and self._best:
            state.append(f"best {self._best[0]:.1f} ({self._best[1]})")
        running = self._fraction
        if done := self._finished + running:
            seconds = (self.total - self.done - running) * (self._clock() - self._start) / done
            state.append(f"{duration(seconds)} left")
        return state

    @property
    def _fraction(self) -> float:
        """Finished part of the running jobs."""
        return sum(report.epoch / job.epochs for job, report in list(self._running.values()))

    def _view(self) -> Group:
        running = list(self._running.values())
        line = Table.grid(padding=(0, 1))
        bar = ProgressBar(self.total, self.done + self._fraction, width=30)
        line.add_row(self._stage, bar, _one_line(", ".join(self._state())))
        lines = (
            f"  {job.name}: epoch {report.epoch}/{job.epochs}{_objective(report)}" for job, report in running
        )
        return Group(line, *map(_one_line, lines))


def _one_line(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _objective(report: EpochReport) -> str:
    return "" if report.objective is None else f", objective {report.objective:.1f}"


def duration(seconds: float) -> str:
    """Format as m:ss, or as h:mm:ss from an hour on.

    Example:
        >>> duration(80), duration(3661)
        ('1:20', '1:01:01')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def plain_console() -> Console:
    """Console for standard output. A notebook's kernel asks for colors, but shows their codes as text."""
    terminal = None if sys.stdout is not None and sys.stdout.isatty() else False
    return Console(
        highlight=False, soft_wrap=True, markup=False, force_jupyter=False, force_terminal=terminal
    )
