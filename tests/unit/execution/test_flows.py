"""Flows and the queue of several flows: what starts next, what waits, what an error ends."""

import io
import itertools
import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from heapq import heappop, heappush
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import pytest
from rich.console import Console

from prometar.errors import InfrastructureError, WorkError
from tests.support.driver import small_config
from tests.support.fake_trial import FakeTraining, fake_job
from tune.execution.dispatcher import Dispatcher
from tune.execution.flows import FairQueue, Flow, Stage, Stages, complete
from tune.execution.job import Job
from tune.execution.machines import Machines
from tune.execution.ray_cluster import Machine
from tune.execution.resources import JobResources
from tune.execution.shutdown import Shutdown
from tune.records.schema import EpochReport
from tune.study import Study


def stage(name: str, folder: Path, num_jobs: int, *, adaptive: bool = False, done: int = 0) -> Stage:
    """A stage of the jobs "trial 0", "trial 1" and so on, after `done` jobs of earlier processes."""
    jobs = [fake_job(folder, number) for number in range(num_jobs)]
    return Stage(name, iter(jobs), total=num_jobs + done, done=done, is_adaptive=adaptive)


def flow_of(name: str, *stages: Stage, max_concurrent: int = 2) -> tuple[Flow, list[Mapping[str, str]]]:
    """A flow of these stages, and the failures that its generator received after each stage."""
    received: list[Mapping[str, str]] = []

    def generate() -> Stages[str]:
        for each in stages:
            failures = yield each
            received.append(failures)
        return f"result of {name}"

    total = sum(each.total for each in stages)
    return Flow(name, generate(), total=total, max_concurrent=max_concurrent), received


def has_ended(queue: FairQueue) -> bool:
    """True if all flows have finished."""
    return next(queue, "the end") == "the end"


def start(queue: FairQueue) -> Job:
    """Start the next job."""
    job = next(queue)
    assert job is not None
    queue.started(job)
    return job


def start_and_name_flow(queue: FairQueue) -> str:
    """Start the next job. Return the name of its flow."""
    job = start(queue)
    return queue.origin(job).flow.name


def test_a_flow_goes_on_with_the_next_stage_once_all_jobs_of_a_stage_have_ended(tmp_path: Path) -> None:
    flow, received = flow_of("a", stage("Search", tmp_path, 2), stage("Final test", tmp_path, 1))
    queue = FairQueue([flow])
    first = start(queue)
    second = start(queue)
    assert next(queue) is None

    queue.finished(second, "the loss is nan")
    assert next(queue) is None, "the first job is still running"

    queue.finished(first, "")
    assert flow.stage_name == "Search"
    last = start(queue)
    assert queue.origin(last).stage == "Final test"
    assert received == [{"trial 1": "the loss is nan"}], "failures have the names that the flow gave"


def test_a_flow_whose_last_stage_has_ended_has_the_result_of_its_generator(tmp_path: Path) -> None:
    flow, _ = flow_of("a", stage("Search", tmp_path, 1))
    queue = FairQueue([flow])
    job = start(queue)
    assert job.name == "a: trial 0"

    queue.finished(job, "")
    assert has_ended(queue)
    assert flow.finished
    assert flow.result == "result of a"
    assert flow.failure == ""


def test_an_adaptive_stage_runs_few_jobs_at_a_time(tmp_path: Path) -> None:
    flow, _ = flow_of("a", stage("Search", tmp_path, 9, adaptive=True), max_concurrent=3)
    first = flow.next_job()
    assert first is not None
    assert flow.next_job() is not None
    assert flow.next_job() is not None
    assert flow.next_job() is None

    flow.ended(first, "")
    assert flow.next_job() is not None


def test_the_flow_with_the_smallest_share_of_ended_and_running_jobs_goes_first(tmp_path: Path) -> None:
    small, _ = flow_of("small", stage("Search", tmp_path, 2))
    large, _ = flow_of("large", stage("Search", tmp_path, 6))
    resumed, _ = flow_of("resumed", stage("Search", tmp_path, 2, done=6))
    queue = FairQueue([small, large, resumed])
    names = [start_and_name_flow(queue) for _ in range(10)]

    # Shares before each start: small 0, 1/2, 1; large 0, 1/6, ..., 1; resumed 6/8, 7/8, 1.
    assert " ".join(names) == "small large large large small large large resumed large resumed"
    assert small.share == large.share == resumed.share == 1


def test_a_flow_that_waits_does_not_keep_others_from_starting(tmp_path: Path) -> None:
    waiting, _ = flow_of("waiting", stage("Search", tmp_path, 9, adaptive=True), max_concurrent=1)
    other, _ = flow_of("other", stage("Search", tmp_path, 3))
    queue = FairQueue([waiting, other])
    names = [start_and_name_flow(queue) for _ in range(4)]

    assert names == ["waiting", "other", "other", "other"]
    assert next(queue) is None


def test_an_error_ends_its_flow_and_others_continue(tmp_path: Path) -> None:
    def generate() -> Stages[None]:
        yield stage("Search", tmp_path, 1)
        raise WorkError("No trial was completed.")

    failing = Flow("failing", generate(), total=2)
    other, _ = flow_of("other", stage("Search", tmp_path, 1))
    queue = FairQueue([failing, other])
    job_of_failing = start(queue)
    job_of_other = start(queue)

    queue.finished(job_of_failing, "the loss is nan")
    assert next(queue) is None
    queue.finished(job_of_other, "")

    assert has_ended(queue)
    assert failing.failure == "No trial was completed."
    assert other.result == "result of other"


def test_a_fault_of_a_machine_ends_all_flows(tmp_path: Path) -> None:
    def generate() -> Stages[None]:
        raise InfrastructureError("the disk is full")
        yield  # so that this function is a generator

    with pytest.raises(InfrastructureError, match="disk is full"):
        next(FairQueue([Flow("a", generate(), total=2)]))


def search_with_a_broken_disk(folder: Path, closed: list[str]) -> Stages[None]:
    """A search whose observer cannot write to the database. It adds "store" to `closed` at its end."""
    observer = Mock(finished=Mock(side_effect=OSError("disk I/O error")))
    try:
        yield Stage("Search", iter([fake_job(folder, 0)]), total=1, observers=[observer])
    except OSError as error:
        raise InfrastructureError(f"Cannot write study.db: {error}") from None
    finally:
        closed.append("store")


def test_a_queue_raises_errors_of_observers_in_the_generator_which_converts_them(tmp_path: Path) -> None:
    closed: list[str] = []
    stages = search_with_a_broken_disk(tmp_path, closed)
    queue = FairQueue([Flow("a", stages, total=1)])
    job = start(queue)

    with pytest.raises(InfrastructureError, match=r"^Cannot write study\.db: disk I/O error$"):
        queue.finished(job, "")
    assert closed == ["store"]


def test_complete_raises_errors_of_a_stage_in_the_generator_which_converts_them(tmp_path: Path) -> None:
    closed: list[str] = []

    def run_stage(stage: Stage) -> Mapping[str, str]:
        job = next(stage.jobs)
        assert job is not None
        for observer in stage.observers:
            observer.finished(job, "")
        return {}

    with pytest.raises(InfrastructureError, match=r"^Cannot write study\.db: disk I/O error$"):
        complete(search_with_a_broken_disk(tmp_path, closed), run_stage)
    assert closed == ["store"]


def test_an_interrupted_flow_releases_what_it_holds(tmp_path: Path) -> None:
    released: list[str] = []

    def generate() -> Stages[None]:
        try:
            yield stage("Search", tmp_path, 1)
        finally:
            released.append("trials")

    with Flow("a", generate(), total=1) as flow:
        assert flow.next_job() is not None
        assert released == []
    assert released == ["trials"]


def test_observers_of_a_stage_see_the_jobs_of_their_flow_and_may_stop_them(tmp_path: Path) -> None:
    observer = Mock(reported=Mock(return_value=False))
    job = fake_job(tmp_path, 0)
    search = Stage("Search", iter([job]), total=1, observers=[observer])
    flow, _ = flow_of("a", search)
    queue = FairQueue([flow])

    queued_job = start(queue)
    continues = queue.reported(queued_job, EpochReport(1))
    queue.finished(queued_job, "")

    assert not continues
    observer.started.assert_called_once_with(job)
    observer.finished.assert_called_once_with(job, "")


class SimulatedPool:
    """Machines with a GPU each, on which jobs take simulated time. Everything else is real.

    Args:
        queue: Queue of the jobs.
        seconds_per_epoch: Mean duration of an epoch, by name of the flow.
        num_gpus: Number of machines.

    Attributes:
        spans: Start and end of each job, in simulated seconds.
        names: Names of the jobs in the order in which they started.
    """

    def __init__(self, queue: FairQueue, seconds_per_epoch: Mapping[str, float], num_gpus: int = 8) -> None:
        machines = [
            Machine(f"id-{number}", f"gpu{number}", {"CPU": 4.0, "GPU": 1.0}) for number in range(num_gpus)
        ]
        resources = JobResources(
            num_concurrent=num_gpus,
            max_concurrent=num_gpus,
            cpus=4.0,
            gpus=1.0,
            max_cpus=4.0,
            max_gpus=1.0,
        )
        seconds = itertools.count()  # a second passes at each call, so the machines are listed at each use
        self._random = random.Random(0)
        self._queue = queue
        self._seconds_per_epoch = seconds_per_epoch
        self._free = [machine.node_id for machine in machines]
        self._running: list[tuple[float, str]] = []  # heap: time at which an epoch ends, and its Tune trial
        # By Tune trial: its training, the node ID of its machine, and the time at which it started.
        self._trainings: dict[str, FakeTraining] = {}
        self._machines: dict[str, str] = {}
        self._started: dict[str, float] = {}
        self.spans: list[tuple[float, float]] = []
        self.names: list[str] = []
        self.num_gpus = num_gpus
        self.dispatcher = Dispatcher(
            queue,
            resources,
            timeout_seconds=None,
            observers=[queue],
            shutdown=Shutdown(Console(file=io.StringIO())),
            machines=Machines(resources, print, list_machines=lambda: machines, clock=lambda: next(seconds)),
        )

    def run(self) -> None:
        """Run all jobs of the queue."""
        now = 0.0
        self._start(now)
        while self._running:
            now, trial = heappop(self._running)
            if self.dispatcher.reported(trial, self._trainings[trial].advance()):
                self.dispatcher.completed(trial)
                self._free.append(self._machines.pop(trial))
                self.spans.append((self._started[trial], now))
            else:
                self._schedule(trial, now)
            self._start(now)
        assert self.dispatcher.finished

    def _start(self, now: float) -> None:
        """Start jobs until no machine is free, or the queue waits."""
        while self._free:
            trial = str(len(self._started))
            request = self.dispatcher.next_request(trial)
            if request is None:
                return
            self._machines[trial] = self._free.pop()
            self.dispatcher.located(trial, self._machines[trial])
            self._trainings[trial] = FakeTraining(request)
            self._started[trial] = now
            self.names.append(request.job.name)
            self._schedule(trial, now)

    def _schedule(self, trial: str, now: float) -> None:
        """Let the next epoch of a Tune trial end after a random time."""
        flow, _, _ = self.names[int(trial)].partition(":")
        seconds = self._seconds_per_epoch[flow] * self._random.uniform(0.7, 1.3)
        heappush(self._running, (now + seconds, trial))

    def busy_share(self, work_share: float) -> float:
        """Share of GPU time that is used until this share of the work (GPU time of all jobs) is done."""
        total_work = sum(end - start for start, end in self.spans)
        starts = {start for start, _ in self.spans}
        ends = {end for _, end in self.spans}
        work = 0.0
        for begin, end in pairwise(sorted(starts | ends)):  # no job starts or ends in between
            num_running = sum(start <= begin and stop >= end for start, stop in self.spans)
            work_at_end = work + num_running * (end - begin)
            if work_at_end >= work_share * total_work:
                return work / (begin * self.num_gpus)
            work = work_at_end
        raise AssertionError("no work")


STUDIES = ("first", "second", "third")
FINAL_SEEDS = (1, 2, 4, 5, 6)


@pytest.fixture
def studies(tmp_path: Path) -> Iterator[list[Flow]]:
    """Three real studies of 24 trials, with confirmation and final test."""
    with ExitStack() as stack:
        flows = []
        for name in STUDIES:
            config = small_config(
                tmp_path,
                study=name,
                trials=24,
                top=3,
                final_seeds=FINAL_SEEDS,
                max_concurrent=None,
            )
            study = Study(config=config, console=Console(quiet=True))
            flow, _ = stack.enter_context(study.open_flow())
            flows.append(flow)
        yield flows


@pytest.mark.parametrize("seconds", [(10.0, 10.0, 10.0), (10.0, 15.0, 20.0)], ids=["equal", "unequal"])
def test_eight_gpus_stay_busy_with_three_studies_until_the_last_tenth_of_the_work(
    studies: list[Flow], seconds: tuple[float, ...]
) -> None:
    seconds_per_epoch = dict(zip(STUDIES, seconds, strict=True))
    pool = SimulatedPool(FairQueue(studies), seconds_per_epoch)
    pool.run()

    assert [flow.failure for flow in studies] == [""] * len(STUDIES)
    assert all(flow.result.seeds == FINAL_SEEDS for flow in studies)
    assert len(pool.names) == len(set(pool.names)), "no job runs twice"
    assert pool.busy_share(0.9) >= 0.9
