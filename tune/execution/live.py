"""Live view of a study's stage in the terminal: progress, best objective and time left."""

import sys
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from prometar.cli.console import format_duration
from prometar.errors import one_line
from tune.execution.job import Job
from tune.execution.progress import JobProgress, StageProgress
from tune.records.schema import EpochReport


class LiveView:
    """Progress of one stage. A terminal shows a bar and failures. Other outputs get a line per ended job.

    Use the view as a context manager around `run_jobs`, and pass it as an observer, after `progress`.
    """

    def __init__(self, console: Console, progress: StageProgress) -> None:
        self._console = console
        self._progress = progress
        self._live: Live | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(console=console, refresh_per_second=2, get_renderable=self._render)

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def started(self, job: Job) -> None:
        """Do nothing. The bar is redrawn regularly."""

    def reported(self, job: Job, report: EpochReport) -> None:
        """Print the notes of the first epoch. Later reports repeat them."""
        if report.epoch == 1:
            for note in report.notes:
                self._print(f"{job.name}: {note}")

    def finished(self, job: Job, failure: str) -> None:
        """Print how the job ended. On a terminal, print failures only, because the bar shows the progress."""
        ended = self._progress.ended[-1]
        if ended.outcome == "failed" or self._live is None:
            outcome = f"{job.name} {_describe_outcome(ended)}"
            self._print("; ".join([outcome, *summarize(self._progress)]))

    def _print(self, line: str) -> None:
        """Print a line after the time since the start of the stage."""
        elapsed = format_duration(self._progress.seconds_elapsed)
        self._console.print(f"[{elapsed}] {line}", markup=False, highlight=False, soft_wrap=True, emoji=False)

    def _render(self) -> Group:
        """Return the bar, and a line per running job."""
        progress = self._progress
        bar = ProgressBar(progress.total, progress.completed_jobs, width=30)
        summary = ", ".join(summarize(progress))
        table = Table.grid(padding=(0, 1))
        table.add_row(progress.stage, bar, _truncated(summary))
        lines: list[Text] = []
        for running in list(progress.running.values()):  # a copy, because rich renders in another thread
            epochs = f"epoch {running.report.epoch}/{running.job.epochs}"
            objective = _describe_objective(running.report)
            lines.append(_truncated(f"  {running.job.name}: {epochs}{objective}"))
        return Group(table, *lines)


def summarize(progress: StageProgress) -> list[str]:
    """Return the counts, the best score and the estimated time left.

    Example:
        >>> summarize(StageProgress("Search", total=24, done=3, best=(61.25, "trial 2")))
        ['3 of 24 done', 'best 61.2 (trial 2)']
    """
    summary = [f"{progress.done} of {progress.total} done"]
    if progress.best is not None:
        score, name = progress.best
        summary.append(f"best {score:.1f} ({name})")
    seconds = progress.seconds_left
    if seconds is not None:
        summary.append(f"{format_duration(seconds)} left")
    return summary


def _describe_outcome(ended: JobProgress) -> str:
    """Return how a job ended, e.g. "pruned at epoch 2/5, objective 51.0"."""
    if ended.outcome == "failed":
        return f"failed: {one_line(ended.failure).rstrip('.')}"
    objective = _describe_objective(ended.report)
    if ended.outcome == "pruned":
        return f"pruned at epoch {ended.report.epoch}/{ended.job.epochs}{objective}"
    return f"finished{objective}"


def _describe_objective(report: EpochReport) -> str:
    """Return the end of a sentence with the objective, or "" before the first score."""
    return "" if report.objective is None else f", objective {report.objective:.1f}"


def _truncated(text: str) -> Text:
    """Return a line that ends with an ellipsis if the terminal is too narrow."""
    return Text(text, no_wrap=True, overflow="ellipsis")


def stdout_console() -> Console:
    """Return a console for standard output, with colors only on a terminal."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    return Console(
        highlight=False,
        markup=False,
        emoji=False,  # "suite:leaves:" contains ":leaves:"
        soft_wrap=True,
        # In a notebook, rich would assume color support and print escape codes.
        force_jupyter=False,
        force_terminal=None if is_terminal else False,  # None: rich decides
    )
