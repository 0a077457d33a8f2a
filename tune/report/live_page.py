"""report.html while a study runs: rewritten regularly, with the progress of the stages.

A thread writes the page. The study never waits for the thread, and never fails because of it.
"""

import threading
import time
from datetime import datetime
from typing import Self

from rich.console import Console

from prometar.cli.console import format_duration
from prometar.errors import first_line
from tune.execution.job import Job
from tune.execution.live import summarize
from tune.execution.progress import JobProgress, StageProgress
from tune.records.folder import StudyFolder
from tune.records.schema import EpochReport
from tune.records.timeline import append_entry
from tune.report.formatting import DASH, format_number
from tune.report.page import STAGES, Progress, write_report
from tune.report.tables import Row, Table

INTERVAL_SECONDS = 30.0
"""Minimum time between two versions of the page, and time after which the browser reloads it."""
_MAX_SHARE = 0.1  # largest share of the time that is spent on writing pages, which matters in long studies


class LivePage:
    """Observer that keeps report.html and timeline.jsonl of a running study current.

    Use the page as a context manager around the stages. `follow` starts a stage.

    Args:
        folder: Folder of the study.
        console: Console for a message if the page cannot be written.
    """

    def __init__(
        self, folder: StudyFolder, console: Console, *, interval_seconds: float = INTERVAL_SECONDS
    ) -> None:
        self._folder = folder
        self._console = console
        self._interval_seconds = interval_seconds
        self._stages: dict[str, StageProgress] = {}  # by name, the current stage last
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._write_regularly, name="report.html", daemon=True)
        self._failed: set[str] = set()  # names of the files for which a message has been printed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def follow(self, progress: StageProgress) -> None:
        """Show the progress of another stage, and write the page regularly until `stop`."""
        self._stages.pop(progress.stage, None)
        self._stages[progress.stage] = progress
        if self._thread.ident is None:
            self._thread.start()

    def started(self, job: Job) -> None:
        """Do nothing. The thread reads the stage's progress."""

    def reported(self, job: Job, report: EpochReport) -> None:
        """Do nothing. The thread reads the stage's progress."""

    def finished(self, job: Job, failure: str) -> None:
        """Add the job to the timeline."""
        stage = self._current_stage
        if stage is not None:
            self._append(stage.ended[-1], stage.stage)

    def stop(self) -> None:
        """Stop writing the page, because the final report follows. Add interrupted jobs to the timeline."""
        self._stopped.set()
        stage = self._current_stage
        if stage is None:
            return
        self._thread.join()
        for job in stage.running.values():
            job.ended = datetime.now()
            job.interrupted = True
            self._append(job, stage.stage)
        stage.running.clear()

    def close(self) -> None:
        """Stop the page. Unless the final report was written, write a page that does not reload itself."""
        if not self._stopped.is_set():
            self.stop()
            if self._current_stage is not None:
                self._write(None)

    @property
    def _current_stage(self) -> StageProgress | None:
        return next(reversed(self._stages.values()), None)

    def _write_regularly(self) -> None:
        wait_seconds = 0.0
        while not self._stopped.wait(wait_seconds):
            start = time.monotonic()
            self._write(self._progress())
            wait_seconds = max(self._interval_seconds, (time.monotonic() - start) / _MAX_SHARE)

    def _write(self, progress: Progress | None) -> None:
        try:
            records = self._folder.read_all()
            if records is not None:
                write_report(records, progress)
        except Exception as error:  # a page is never worth a study
            self._print_once("report.html", error)

    def _append(self, job: JobProgress, stage: str) -> None:
        try:
            append_entry(self._folder.path, job.timeline_entry(stage))
        except Exception as error:
            self._print_once("timeline.jsonl", error)

    def _print_once(self, name: str, error: Exception) -> None:
        if name not in self._failed:
            self._failed.add(name)
            message = f"Cannot update {name}, but the study continues: {first_line(error)}"
            self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def _progress(self) -> Progress:
        current = self._current_stage
        assert current is not None
        rows = []
        for name in STAGES:
            stage = self._stages.get(name)
            if stage is not None:
                share = stage.completed_jobs / stage.total if stage.total else 1.0
                rows.append((name, min(1.0, share), ", ".join(summarize(stage))))
            elif STAGES.index(name) < STAGES.index(current.stage):
                rows.append((name, 1.0, "done"))
            else:
                rows.append((name, 0.0, "not started"))
        running = list(current.running.values())
        return Progress(
            updated=datetime.now().astimezone(),
            refresh_seconds=max(1, round(self._interval_seconds)),
            stages=rows,
            running=_running_table(running),
            timeline=[job.timeline_entry(current.stage) for job in running],
        )


def _running_table(jobs: list[JobProgress]) -> Table:
    rows: list[Row] = []
    for each in jobs:
        cells = (
            each.job.name,
            str(each.slot),
            f"{each.report.epoch} of {each.job.epochs}",
            format_number(each.report.objective) if each.report.epoch else DASH,
            format_duration((datetime.now() - each.started).total_seconds()),
        )
        rows.append(Row(cells))
    return Table("Running", ("job", "slot", "epoch", "score", "running for"), rows)
