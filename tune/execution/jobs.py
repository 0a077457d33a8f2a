"""Jobs: complete values that a source hands out, workers train and observers watch."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict


@dataclass(frozen=True)
class RunSpec:
    """One training run.

    Args:
        config: `Config.model_dump(mode="json")`, complete.
        folder: Absolute path of the run's folder.
        targets: Other datasets that its prompts are tested on in the end.
    """

    config: dict[str, Any]
    folder: str
    targets: tuple[str, ...] = ()

    @property
    def dataset(self) -> str:
        return str(self.config["data"]["name"])

    @property
    def seed(self) -> int:
        return int(self.config["train"]["seed"])


@dataclass(frozen=True)
class Job:
    """One trial, one confirmation run, one final-test run or one run of a grid.

    Args:
        name: Shown to users, e.g. "trial 7". Unique in its source.
        runs: Training runs. The job's figures are means over them.
        objective: Name of the objective, `module:Name` of a custom one, or "final".
        val_per_class: Validation images per class, at most.
        number: Number of the trial.
        alignment: True if gradient alignment is measured as the runs train.
    """

    name: str
    runs: tuple[RunSpec, ...]
    objective: str
    val_per_class: int = 20
    number: int = 0
    alignment: bool = False

    @property
    def epochs(self) -> int:
        return int(self.runs[0].config["train"]["epochs"])


class EpochReport(TypedDict, total=False):
    """Result of one epoch of a job.

    Attributes:
        epoch: Counted from 1.
        finished: True in the last report of a job.
        failed: Error message if the job failed; "" or missing otherwise.
        objective, base, new: Percent, means over the runs. Missing if the epoch was not scored.
        loss: Mean training loss. seconds: Training time of all runs so far.
        runs: Dataset, seed and figures of each run.
        notes: Notices for the user, e.g. "started over: the checkpoint is corrupt".
    """

    epoch: int
    finished: bool
    failed: str
    objective: float
    base: float
    new: float
    loss: float
    seconds: float
    runs: list[dict[str, Any]]
    notes: list[str]


class Wait:
    """Answer of a source that has no job now but may have one after a running job ends."""


WAIT = Wait()


class JobSource(Protocol):
    """Hands out jobs and receives their results. All calls come from one thread."""

    def next(self) -> Job | Wait | None:
        """Return a job to run, `WAIT`, or None if no more jobs will come."""

    def report(self, job: Job, report: EpochReport, resources: Mapping[str, float]) -> bool:
        """Receive the result of an epoch. Return False to stop the job, e.g. if it is pruned.

        Args:
            resources: Allocated `cpus` and `gpus`.
        """

    def finish(self, job: Job, failure: str) -> None:
        """Receive the end of a job. Jobs that a signal interrupts do not end.

        Args:
            failure: Why the job failed or its worker died for good. "" if it finished, or if `report`
                stopped it.
        """


class ListedJobs:
    """Source of a fixed list of jobs.

    Attributes:
        failures: Error message by name of each job that failed.
    """

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._left = deque(jobs)
        self.failures: dict[str, str] = {}

    def next(self) -> Job | None:
        return self._left.popleft() if self._left else None

    def report(self, job: Job, report: EpochReport, resources: Mapping[str, float]) -> bool:
        return True

    def finish(self, job: Job, failure: str) -> None:
        if failure:
            self.failures[job.name] = failure


class Observer(Protocol):
    """Watches the jobs of a `run_jobs` call, e.g. a live view or an experiment tracker."""

    def started(self, job: Job) -> None:
        """A job was handed out. Retries are not announced."""

    def reported(self, job: Job, report: EpochReport) -> None:
        """The source has received the result of an epoch."""

    def finished(self, job: Job, failure: str) -> None:
        """The source has received the end of a job. `failure` is "" unless the job failed."""
