"""Live view of a study's stage: progress, best objective and time left."""

import sys
import time
from collections.abc import Callable
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from prometar.cli.console import format_duration
from prometar.errors import one_line
from tune.execution.job import Job
from tune.records.schema import EpochReport


class LiveView:
    """Progress of one stage: on a terminal, a progress bar and failures; elsewhere, a line per ended job.

    Use the view as a context manager around `run_jobs`, and pass it as an observer.

    Args:
        stage: Name of the stage, e.g. "Search".
        total: Number of jobs, including `done`.
        done: Number of jobs that ended (finished, were pruned or failed) in earlier processes.
        best: Best score (objective) so far and the name of its job, or None if no job has finished.
        show_best: False to hide the best score, for jobs whose scores are not comparable.
    """

    def __init__(
        self,
        console: Console,
        stage: str,
        total: int,
        done: int = 0,
        *,
        best: tuple[float, str] | None = None,
        show_best: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._stage, self._total, self._done = console, stage, total, done
        self._best, self._show_best, self._clock = best, show_best, clock
        self._start = clock()
        self._running: dict[str, tuple[Job, EpochReport]] = {}  # job and its latest report, by job name
        self._done_here = 0  # jobs that have ended in this process
        live = Live(console=console, refresh_per_second=2, get_renderable=self._render)
        self._live = live if console.is_terminal and not console.is_dumb_terminal else None

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
        for note in report.notes if report.epoch == 1 else ():  # each report repeats the notes
            self._print(f"{job.name}: {note}")

    def finished(self, job: Job, failure: str) -> None:
        _, report = self._running.pop(job.name, (job, EpochReport()))
        self._done += 1
        self._done_here += 1
        failure, objective = failure or report.error, report.objective
        complete = report.finished and not failure
        if complete and objective is not None and (self._best is None or objective > self._best[0]):
            self._best = objective, job.name
        if failure or self._live is None:
            state = "finished" if report.finished else f"pruned at epoch {report.epoch}/{job.epochs}"
            outcome = f"failed: {one_line(failure).rstrip('.')}" if failure else state + _objective(report)
            self._print("; ".join((f"{job.name} {outcome}", *self._summary())))

    def _print(self, line: str) -> None:
        elapsed = format_duration(self._clock() - self._start)
        self._console.print(f"[{elapsed}] {line}", markup=False, highlight=False, soft_wrap=True, emoji=False)

    def _summary(self) -> list[str]:
        """Return the counts, the best score and the estimated time left."""
        summary = [f"{self._done} of {self._total} done"]
        if self._show_best and self._best:
            summary.append(f"best {self._best[0]:.1f} ({self._best[1]})")
        partial = self._partial_progress
        if progress := self._done_here + partial:  # assumes that the remaining jobs run at the same rate
            seconds = (self._total - self._done - partial) * (self._clock() - self._start) / progress
            summary.append(f"{format_duration(max(0.0, seconds))} left")
        return summary

    @property
    def _partial_progress(self) -> float:
        """Sum of the completed fractions of the running jobs, e.g. 1.5 for three half-finished jobs."""
        return sum(report.epoch / job.epochs for job, report in list(self._running.values()))

    def _render(self) -> Group:
        running = list(self._running.values())  # a copy, because rich renders in another thread
        table = Table.grid(padding=(0, 1))
        bar = ProgressBar(self._total, self._done + self._partial_progress, width=30)
        table.add_row(self._stage, bar, _truncated(", ".join(self._summary())))
        lines = (f"  {job.name}: epoch {last.epoch}/{job.epochs}{_objective(last)}" for job, last in running)
        return Group(table, *map(_truncated, lines))


def _truncated(text: str) -> Text:
    return Text(text, no_wrap=True, overflow="ellipsis")


def _objective(report: EpochReport) -> str:
    return "" if report.objective is None else f", objective {report.objective:.1f}"


def stdout_console() -> Console:
    """Return a console for standard output, with colors only on a terminal."""
    # In a notebook, rich would assume color support and print escape codes.
    force = None if sys.stdout is not None and sys.stdout.isatty() else False  # None: rich decides
    plain = {"highlight": False, "markup": False, "emoji": False}  # "suite:leaves:" contains ":leaves:"
    return Console(**plain, soft_wrap=True, force_jupyter=False, force_terminal=force)
