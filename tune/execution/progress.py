"""Progress of a stage: running jobs, ended jobs, best score and time left."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count

from tune.execution.job import Job
from tune.records.schema import EpochReport
from tune.records.timeline import Outcome, TimelineEntry


@dataclass
class JobProgress:
    """Progress of a job.

    Args:
        slot: Number of the slot in which the job runs, counted from 1. A slot runs one job at a time.
        started: Time at which the job started.
        report: Latest report of the job.
        ended: Time at which the job ended, or None while it runs.
        failure: Failure reason, or "".
        interrupted: True if a signal or an error stopped the study before the job ended.
    """

    job: Job
    slot: int
    started: datetime
    report: EpochReport = field(default_factory=EpochReport)
    ended: datetime | None = None
    failure: str = ""
    interrupted: bool = False

    @property
    def outcome(self) -> Outcome:
        """How the job ended, or "running"."""
        if self.ended is None:
            return "running"
        if self.interrupted:
            return "interrupted"
        if self.failure:
            return "failed"
        return "finished" if self.report.finished else "pruned"

    def timeline_entry(self, stage: str) -> TimelineEntry:
        """Return the entry of the job in the study's timeline. A running job ends now."""
        return TimelineEntry(
            stage=stage,
            job=self.job.name,
            slot=self.slot,
            started=self.started,
            ended=self.ended or datetime.now(),
            outcome=self.outcome,
        )


class StageProgress:
    """Observer that records the progress of one stage, for the live view and the live page.

    In a list of observers, it comes before the observers that read it.

    Args:
        stage: Name of the stage, e.g. "Search".
        total: Number of jobs, including `done`.
        done: Number of jobs that ended (finished, were pruned or failed) in earlier processes.
        best: Best objective of earlier processes and the name of its job, or None if no job has finished.
        has_best: False for jobs whose scores are not comparable. `best` then stays None.
        clock: Function that returns the time in seconds.

    Attributes:
        best: Best objective so far and the name of its job, or None.
        running: Running jobs by name.
        ended: Jobs that ended in this process.
    """

    def __init__(
        self,
        stage: str,
        total: int,
        done: int = 0,
        *,
        best: tuple[float, str] | None = None,
        has_best: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stage = stage
        self.total = total
        self.best = best
        self.running: dict[str, JobProgress] = {}
        self.ended: list[JobProgress] = []
        self._done_before = done
        self._has_best = has_best
        self._clock = clock
        self._start = clock()

    def started(self, job: Job) -> None:
        used = {running.slot for running in self.running.values()}
        slot = next(number for number in count(1) if number not in used)
        self.running[job.name] = JobProgress(job, slot, datetime.now())

    def reported(self, job: Job, report: EpochReport) -> None:
        self.running[job.name].report = report

    def finished(self, job: Job, failure: str) -> None:
        ended = self.running.pop(job.name)
        ended.ended = datetime.now()
        ended.failure = failure or ended.report.error
        self.ended.append(ended)
        objective = ended.report.objective
        if not self._has_best or ended.outcome != "finished" or objective is None:
            return
        if self.best is not None:
            best_objective, _ = self.best
            if objective <= best_objective:
                return
        self.best = (objective, job.name)

    @property
    def done(self) -> int:
        """Number of jobs that have ended, in this process or earlier."""
        return self._done_before + len(self.ended)

    @property
    def completed_jobs(self) -> float:
        """Number of ended jobs, plus the completed fractions of the running ones."""
        return self.done + self._running_fractions

    @property
    def seconds_elapsed(self) -> float:
        """Seconds since the start of the stage in this process."""
        return self._clock() - self._start

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds until the stage ends, or None before the first epoch.

        The estimate assumes that the remaining jobs take as long as the jobs of this process.
        """
        completed_here = len(self.ended) + self._running_fractions
        if not completed_here:
            return None
        remaining = max(0.0, self.total - self.completed_jobs)
        return remaining * self.seconds_elapsed / completed_here

    @property
    def _running_fractions(self) -> float:
        """Sum of the completed fractions of the running jobs, e.g. 1.5 for three half-finished jobs."""
        running = list(self.running.values())  # a copy, because the live view reads it in another thread
        return sum(progress.report.epoch / progress.job.epochs for progress in running)
