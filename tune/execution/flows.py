"""Stages of jobs, and a queue that runs the stages of several flows, e.g. studies, on one pool of machines.

The stages come from a generator. It yields a stage, and is resumed with the failure reasons of the stage's
jobs once all of them have ended. `complete` runs one such generator, with a call of `run_jobs` per stage.
A `Flow` wraps a generator for a `FairQueue`. The queue mixes the jobs of several flows in one call of
`run_jobs`, so that machines do not wait between stages.
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
        jobs: Jobs that still have to run. An iterator that yields None is asked again after the next result.
        total: Number of jobs, including `done`.
        done: Number of jobs that ended before, e.g. in earlier processes.
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
"""Generator of stages. Once the jobs of a stage have ended, it receives their failure reasons by job name."""


def complete(stages: Stages[Result], run_stage: Callable[[Stage], Mapping[str, str]]) -> Result:
    """Run the stages one after the other, and return the result of the generator.

    Errors of `run_stage` are raised inside the generator, at the `yield` of the stage. The `with` and `try`
    blocks around the `yield` may convert them.

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
    """Stages whose jobs run among those of other flows. As a context manager, it closes the generator.

    Args:
        name: Name in messages. It is unique in a queue.
        stages: Generator of the stages.
        total: Maximum number of jobs of all stages. It may be estimated.
        max_concurrent: Maximum number of concurrent jobs of an adaptive stage.

    Attributes:
        finished: True if no stage is left.
        result: Return value of the generator. None before the generator has ended, and after a failure.
        failure: Reason why the flow ended early, or "".
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
        self._has_jobs = False  # in the current stage
        self._running: set[str] = set()  # names of jobs
        self._failures: dict[str, str] = {}  # in the current stage, by job name
        self._ended: dict[str, int] = {}  # number of ended jobs by name of the stage

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
        """Share of the expected jobs that have ended or are running, from 0 to 1 (more if `total` is low)."""
        return (self.num_ended + len(self._running)) / max(1, self.total)

    def begin(self) -> None:
        """Go to the first stage, unless the flow has begun. `share` then includes earlier processes."""
        if self._stage is None and not self.finished:
            self._advance()

    def next_job(self) -> Job | None:
        """Return the next job, or None if the flow is finished or waits for the result of a running job."""
        self.begin()
        while not self.finished and self._stage is not None:
            stage = self._stage
            if stage.is_adaptive and len(self._running) >= self._max_concurrent:
                return None
            job = self._next_of_stage(stage)
            if job is not None:
                self._running.add(job.name)
                return job
            waits_for_result = self._has_jobs or self._running
            if waits_for_result:
                return None
            self._advance()
        return None

    def _next_of_stage(self, stage: Stage) -> Job | None:
        """Return the next job of a stage, or None if no job is left or the stage waits for a result."""
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
        """Go to the next stage. If the generator raises a PrometarError, the flow ends with a failure.

        Raises:
            InfrastructureError: the generator raised it. A fault of a machine is not a failure of this flow.
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
            # Several stages may have the same name, e.g. those of a final test. The `done` jobs of each stage
            # include the jobs of the previous ones.
            self._ended[stage.name] = stage.done

    def _raise(self, error: Exception) -> NoReturn:
        """Raise an error inside the generator, where `with` and `try` blocks may convert it."""
        self.finished = True
        self._stages.throw(error)
        raise error  # the generator has suppressed it

    def started(self, job: Job) -> None:
        """Pass the start of a job to the observers of the stage."""
        for observer in self._observers:
            observer.started(job)

    def reported(self, job: Job, report: EpochReport) -> bool:
        """Pass a report to the observers of the stage. Return False if one of them stops the job."""
        try:
            # A list, so that every observer gets the report, even if an earlier one stops the job.
            answers = [observer.reported(job, report) for observer in self._observers]
        except Exception as error:
            self._raise(error)
        return False not in answers

    def ended(self, job: Job, failure: str) -> None:
        """Record the end of a job, and pass it to the observers of the stage."""
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
    """Job of a flow, with the name that the flow gave it.

    In the queue, the flow's name precedes the job's name, because jobs of several flows may have equal names.

    Args:
        stage: Name of the job's stage.
    """

    flow: Flow
    stage: str
    job: Job


class FairQueue(Iterator[Job | None]):
    """Iterator over the jobs of several flows. It is also an `Observer`, which passes results to the flows.

    The next job comes from the flow with the smallest share of ended and running jobs, so that all flows
    advance at the same rate. A flow that waits for results is passed over. Ties go to the earlier flow. If
    all flows wait, the queue yields None.
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
