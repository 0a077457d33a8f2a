"""Stages of jobs, and a queue that runs the stages of several flows, e.g. studies, on one pool of machines.

A flow is a generator of stages. It yields a stage, receives the failure reasons of its jobs once all of them
have ended, and then yields the next stage. `complete` runs one flow, with a call of `run_jobs` per stage.
`FairQueue` mixes the jobs of several flows in one call, so that machines do not wait between stages.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar

from prometar.errors import InfrastructureError, PrometarError
from tune.execution.job import Job, Observer
from tune.records.schema import EpochReport

Result = TypeVar("Result")


@dataclass(frozen=True)
class Stage:
    """Jobs that must end before a flow continues.

    Args:
        name: Name in messages and in the timeline, e.g. "Search".
        jobs: Jobs that still have to run. None: ask again after the next result.
        total: Number of jobs, including `done`.
        done: Number of jobs that ended in earlier processes.
        observers: Observers of these jobs.
        is_adaptive: True if results determine the next jobs, so that few jobs should run at a time.
    """

    name: str
    jobs: Iterator[Job | None]
    total: int
    done: int = 0
    observers: Sequence[Observer] = ()
    is_adaptive: bool = False


Stages = Generator[Stage, Mapping[str, str], Result]
"""Generator of stages. It receives the failure reasons of a stage's jobs, by job name."""


def complete(stages: Stages[Result], run_stage: Callable[[Stage], Mapping[str, str]]) -> Result:
    """Run the stages one after the other, and return the result of the generator.

    Errors of `run_stage` are raised inside the generator, whose contexts may convert them.

    Args:
        run_stage: Function that runs the jobs of a stage, and returns failure reasons by job name.

    Example:
        >>> def stages():
        ...     failures = yield Stage("Search", iter(()), total=0)
        ...     return len(failures)
        >>> complete(stages(), lambda stage: {"trial 0": "the loss is nan"})
        1
    """
    with closing(stages):
        try:
            stage = next(stages)
            while True:
                try:
                    failures = run_stage(stage)
                except BaseException as error:
                    stage = stages.throw(error)
                else:
                    stage = stages.send(failures)
        except StopIteration as end:
            return end.value


class Flow:
    """Stages whose jobs run among those of other flows. Use it as a context manager.

    Args:
        name: Name in messages. It is unique in a queue.
        total: Maximum number of jobs of all stages. It may be estimated.
        max_concurrent: Maximum number of concurrent jobs of an adaptive stage.

    Attributes:
        finished: True if no stage is left.
        result: What the generator returned, None before that or after a failure.
        failure: Why the flow ended early, or "".
    """

    def __init__(self, name: str, stages: Stages[Any], *, total: int, max_concurrent: int = 1) -> None:
        self.name = name
        self.finished = False
        self.result: Any = None
        self.failure = ""
        self._stages = stages
        self.total = total
        self._max_concurrent = max_concurrent
        self._stage: Stage | None = None
        self._has_jobs = False  # of the current stage
        self._running: set[str] = set()
        self._failures: dict[str, str] = {}  # of the current stage, by job name
        self._ended: dict[str, int] = {}  # number of ended jobs by stage, including earlier processes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stages.close()

    @property
    def stage_name(self) -> str:
        """Name of the current stage, "" before the first one."""
        return self._stage.name if self._stage else ""

    @property
    def num_ended(self) -> int:
        """Number of ended jobs, including those of earlier processes."""
        return sum(self._ended.values())

    @property
    def share(self) -> float:
        """Share of the expected jobs that have ended or are running."""
        return (self.num_ended + len(self._running)) / max(1, self.total)

    def begin(self) -> None:
        """Go to the first stage, unless this has been done. `share` is then known."""
        if self._stage is None and not self.finished:
            self._advance()

    def next_job(self) -> Job | None:
        """Return the next job. None: the flow is finished, or its next job depends on a running one."""
        self.begin()
        while not self.finished and self._stage is not None:
            stage = self._stage
            if stage.is_adaptive and len(self._running) >= self._max_concurrent:
                return None
            job = self._next_of_stage(stage)
            if job is not None:
                self._running.add(job.name)
                return job
            if self._has_jobs or self._running:
                return None
            self._advance()
        return None

    def _next_of_stage(self, stage: Stage) -> Job | None:
        if not self._has_jobs:
            return None
        try:
            return next(stage.jobs)
        except StopIteration:
            self._has_jobs = False
            return None
        except Exception as error:
            self._raise(error)

    def _advance(self) -> None:
        """Go to the next stage. A flow whose generator fails ends, and other flows continue.

        Raises:
            InfrastructureError: a fault of a machine. It is not the result of this flow.
        """
        failures = self._failures
        self._failures = {}
        try:
            stage = next(self._stages) if self._stage is None else self._stages.send(failures)
        except StopIteration as end:
            self.finished = True
            self.result = end.value
        except InfrastructureError:
            raise
        except PrometarError as error:
            self.finished = True
            self.failure = str(error)
        else:
            self._stage = stage
            self._has_jobs = True
            self._ended[stage.name] = stage.done

    def _raise(self, error: Exception) -> NoReturn:
        """Raise an error inside the generator, whose contexts may convert it."""
        self.finished = True
        self._stages.throw(error)
        raise error

    def started(self, job: Job) -> None:
        for observer in self._observers:
            observer.started(job)

    def reported(self, job: Job, report: EpochReport) -> bool:
        """Pass a report to the observers of the stage. Return False if one of them stops the job."""
        try:
            return False not in [each.reported(job, report) for each in self._observers]
        except Exception as error:
            self._raise(error)

    def ended(self, job: Job, failure: str) -> None:
        self._running.remove(job.name)
        self._ended[self.stage_name] += 1
        if failure:
            self._failures[job.name] = failure
        try:
            for observer in self._observers:
                observer.finished(job, failure)
        except Exception as error:
            self._raise(error)

    @property
    def _observers(self) -> Sequence[Observer]:
        return self._stage.observers if self._stage else ()


@dataclass(frozen=True)
class QueuedJob:
    """Job of a flow, as the flow knows it: a queue adds the name of the flow to that of the job."""

    flow: Flow
    stage: str
    job: Job


class FairQueue(Iterator[Job | None]):
    """Iterator over the jobs of several flows. It is also an `Observer`, which passes results to the flows.

    The next job comes from the flow with the smallest share of ended and running jobs, so that all flows
    advance at the same rate. A flow that waits for results is passed over. Ties go to the earlier flow.
    """

    def __init__(self, flows: Sequence[Flow]) -> None:
        self._flows = flows
        self._queued: dict[str, QueuedJob] = {}  # by name in the queue

    def __next__(self) -> Job | None:
        for flow in self._flows:
            flow.begin()
        for flow in sorted(self._flows, key=lambda flow: flow.share):
            job = flow.next_job()
            if job is not None:
                job_in_queue = replace(job, name=f"{flow.name}: {job.name}")
                self._queued[job_in_queue.name] = QueuedJob(flow, flow.stage_name, job)
                return job_in_queue
        if all(flow.finished for flow in self._flows):
            raise StopIteration
        return None

    def origin(self, job: Job) -> QueuedJob:
        """Return the flow, the stage and the original form of a job of this queue."""
        return self._queued[job.name]

    def started(self, job: Job) -> None:
        queued = self.origin(job)
        queued.flow.started(queued.job)

    def reported(self, job: Job, report: EpochReport) -> bool:
        queued = self.origin(job)
        return queued.flow.reported(queued.job, report)

    def finished(self, job: Job, failure: str) -> None:
        queued = self.origin(job)
        queued.flow.ended(queued.job, failure)
