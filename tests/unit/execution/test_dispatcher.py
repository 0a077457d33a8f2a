"""What a dispatcher starts, moves, retries and ends, without Ray."""

import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from ray.exceptions import ActorDiedError
from rich.console import Console

from prometar.errors import InfrastructureError, InputError
from tests.support.fake_trial import fake_job
from tune.execution.dispatcher import MAX_RETRIES, Dispatcher
from tune.execution.machines import MAX_DEATHS, Machines
from tune.execution.ray_cluster import Machine
from tune.execution.resources import JobResources
from tune.execution.shutdown import Shutdown
from tune.execution.worker import JobRequest
from tune.records.schema import EpochReport

GPU = JobResources(num_concurrent=4, max_concurrent=4, cpus=2.0, gpus=0.25, max_cpus=16.0, max_gpus=1.0)
"""Resources of a job on a GPU that four jobs share."""
DIED = ActorDiedError()
"""Error of a worker whose process has died."""
NO_DATA = InputError("/data is not a folder.")


def machine(name: str) -> Machine:
    """A machine with one GPU. Its node ID is id-NAME."""
    return Machine(f"id-{name}", name, {"CPU": 16.0, "GPU": 1.0})


class Cluster:
    """A dispatcher of the jobs "trial 0", "trial 1" and so on, on machines that a test can change.

    Args:
        folder: Folder of the jobs.
        num_jobs: Number of jobs.
        machines: Names of the machines at the start.
        stops_jobs: True if the observer stops each job at its first report.
        clock_stands: True if no time passes, so that machines are only listed again when this is requested.
            Otherwise a second passes at each look at the clock, so machines are listed at each use.
    """

    def __init__(
        self,
        folder: Path,
        num_jobs: int = 1,
        *,
        machines: Sequence[str] = ("a",),
        resources: JobResources = GPU,
        independent_inputs: bool = False,
        stops_jobs: bool = False,
        clock_stands: bool = False,
    ) -> None:
        self.listed = [machine(name) for name in machines]
        self.told: list[str] = []
        self.shutdown = Shutdown(Console(file=io.StringIO()))
        self.observer = Mock(reported=lambda *_: not stops_jobs)
        seconds = itertools.count(step=0 if clock_stands else 1)
        self.machines = Machines(
            resources,
            self.told.append,
            list_machines=lambda: self.listed,
            clock=lambda: next(seconds),
        )
        self.dispatcher = Dispatcher(
            (fake_job(folder, number) for number in range(num_jobs)),
            resources,
            timeout_seconds=9.0,
            observers=[self.observer],
            shutdown=self.shutdown,
            machines=self.machines,
            independent_inputs=independent_inputs,
        )

    def begin(self, trial: str, on: str | None = None) -> JobRequest:
        """Start the next job as the Tune trial `trial`, by default on the first machine that it may use."""
        request = self.dispatcher.next_request(trial)
        assert request is not None
        usable = [each.node_id for each in self.listed if each.node_id not in request.avoided]
        node_id = usable[0] if on is None else f"id-{on}"
        assert node_id in usable
        self.dispatcher.located(trial, node_id)
        return request

    def starts_nothing(self) -> bool:
        """True if no job starts now."""
        return self.dispatcher.next_request("none") is None

    def epoch(self, trial: str, number: int) -> bool:
        """Report an epoch. Return True if the Tune trial must stop."""
        return self.dispatcher.reported(trial, EpochReport(number))


def test_without_another_machine_a_dead_workers_job_is_retried_on_the_same(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    first = cluster.begin("0")

    for retry in range(MAX_RETRIES):
        cluster.dispatcher.failed(str(retry), DIED)
        assert cluster.begin(str(retry + 1)) == first


def test_a_dispatcher_with_a_running_job_has_not_finished_because_the_job_may_need_a_retry(
    tmp_path: Path,
) -> None:
    cluster = Cluster(tmp_path)
    cluster.begin("0")

    assert cluster.starts_nothing()
    assert not cluster.dispatcher.finished


def test_a_new_epoch_starts_a_new_count_of_deaths(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.begin("0")

    num_deaths = 3 * MAX_RETRIES
    for trial in range(num_deaths):
        if trial % MAX_RETRIES == 0:
            must_stop = cluster.epoch(str(trial), 1 + trial)
            assert not must_stop
        cluster.dispatcher.failed(str(trial), DIED)
        cluster.begin(str(trial + 1))

    assert cluster.dispatcher.error is None


def test_a_job_whose_workers_die_on_the_only_machine_stops_the_experiment_and_is_no_failure(
    tmp_path: Path,
) -> None:
    cluster = Cluster(tmp_path, 2)
    for trial in range(MAX_RETRIES):
        cluster.begin(str(trial))
        cluster.dispatcher.failed(str(trial), DIED)
    cluster.begin("last")

    with pytest.raises(InfrastructureError, match=r"^trial 0: .* \(on a\)$"):
        cluster.dispatcher.failed("last", DIED)
    assert cluster.dispatcher.must_stop
    assert cluster.dispatcher.failures == {}
    cluster.observer.finished.assert_not_called()


GPU_ERRORS = [
    "CUDA error: uncorrectable ECC error encountered",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
]


@pytest.mark.parametrize("message", GPU_ERRORS)
def test_a_gpu_that_fails_during_training_stops_the_experiment_and_fails_no_job(
    message: str, tmp_path: Path
) -> None:
    cluster = Cluster(tmp_path, 2)
    for trial in range(MAX_RETRIES):
        cluster.begin(str(trial))
        cluster.dispatcher.failed(str(trial), RuntimeError(message))
    cluster.begin("last")

    with pytest.raises(InfrastructureError, match=rf"^trial 0: {re.escape(message)} \(on a\)$"):
        cluster.dispatcher.failed("last", RuntimeError(message))
    assert cluster.dispatcher.failures == {}


def test_an_error_of_the_jobs_own_code_fails_the_job_after_retries(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, machines=("a", "b", "c", "d"))
    avoided: list[tuple[str, ...]] = []
    for trial in range(1 + MAX_RETRIES):
        request = cluster.begin(str(trial))
        avoided.append(request.avoided)
        cluster.dispatcher.failed(str(trial), RuntimeError("cheese"))

    assert avoided == [(), ("id-a",), ("id-a", "id-b")], "each retry is on another machine"
    assert cluster.dispatcher.failures == {"trial 0": "RuntimeError: cheese"}
    assert cluster.starts_nothing()
    assert cluster.dispatcher.finished


def test_a_job_moves_away_from_a_machine_without_data_and_later_jobs_avoid_it(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 5, machines=("bad", "good"))
    cluster.begin("0", on="bad")
    cluster.begin("1", on="good")

    cluster.dispatcher.failed("0", NO_DATA)
    assert cluster.told == ["Avoiding bad: /data is not a folder."]

    moved = cluster.begin("2")
    later = cluster.begin("3")
    assert moved.job.name == "trial 0"
    assert moved.avoided == ("id-bad",)
    assert later.avoided == ("id-bad",)
    assert cluster.dispatcher.failures == {}
    cluster.observer.finished.assert_not_called()


def test_if_no_machine_has_the_data_the_experiment_stops_and_names_them(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 5, machines=("a", "b"))
    cluster.begin("0", on="a")
    cluster.begin("1", on="b")
    cluster.dispatcher.failed("0", NO_DATA)
    cluster.begin("2", on="b")

    with pytest.raises(InfrastructureError, match=r"^trial 1: /data is not a folder \(on b\)$"):
        cluster.dispatcher.failed("1", NO_DATA)
    assert cluster.dispatcher.must_stop
    assert cluster.dispatcher.failures == {}


def test_jobs_with_other_data_go_on_if_no_machine_can_read_the_data_of_one(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 2, machines=("a", "b"), independent_inputs=True)
    cluster.begin("0", on="a")
    cluster.dispatcher.failed("0", NO_DATA)

    moved = cluster.begin("1")
    assert moved.avoided == ("id-a",)
    cluster.dispatcher.failed("1", NO_DATA)
    assert cluster.dispatcher.failures == {"trial 0": "/data is not a folder (on a, b)"}

    other = cluster.begin("2")
    assert other.job.name == "trial 1"
    assert other.avoided == (), "both machines may have the data of this job"


def test_the_experiment_stops_if_the_last_machine_that_is_not_avoided_leaves(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, machines=("a", "b"))
    cluster.begin("0", on="a")
    cluster.dispatcher.failed("0", NO_DATA)
    assert cluster.dispatcher.next_request("1") is not None, "the job waits for machine b"
    assert not cluster.dispatcher.must_stop

    cluster.listed = [machine("a")]
    assert cluster.dispatcher.must_stop
    assert str(cluster.dispatcher.error) == "no machine can run the jobs: /data is not a folder (on a)"


def test_if_a_worker_cannot_start_because_the_last_machine_died_the_reasons_of_others_are_given(
    tmp_path: Path,
) -> None:
    cluster = Cluster(tmp_path, 2, machines=("a", "b"), clock_stands=True)
    cluster.begin("0", on="a")
    assert cluster.dispatcher.next_request("1") is not None, "trial 1 waits for machine b"
    cluster.dispatcher.failed("0", NO_DATA)
    cluster.listed = [machine("a")]  # machine b dies
    assert not cluster.dispatcher.must_stop, "its death is not noticed yet"

    cluster.dispatcher.failed("1", DIED)

    assert cluster.dispatcher.must_stop
    assert str(cluster.dispatcher.error) == "no machine can run the jobs: /data is not a folder (on a)"


def test_a_machine_that_left_costs_its_job_no_retry(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    more_than_the_retries = 2 * MAX_RETRIES
    for number in range(more_than_the_retries):
        cluster.listed = [machine(f"spot{number}")]
        cluster.begin(str(number))
        cluster.listed = []
        cluster.dispatcher.failed(str(number), DIED)

    assert cluster.dispatcher.error is None
    assert not cluster.dispatcher.must_stop, "another machine may join"


def test_a_machine_on_which_workers_of_several_jobs_die_is_avoided(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 9, machines=("bad", "good"))
    for number in range(MAX_DEATHS):
        cluster.begin(f"bad{number}", on="bad")
        cluster.dispatcher.failed(f"bad{number}", DIED)
        cluster.begin(f"good{number}", on="good")

    assert list(cluster.machines.avoided) == ["id-bad"]
    assert cluster.begin("next").avoided == ("id-bad",)


def test_out_of_memory_doubles_the_share_of_a_gpu_until_the_job_has_a_whole_gpu(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    shares: list[float] = []
    for trial in range(3):
        request = cluster.begin(str(trial))
        trainer, _ = request.bundles
        shares.append(trainer["GPU"])
        assert request.allocated["gpus"] == trainer["GPU"]
        assert request.resources.threads == GPU.threads
        cluster.dispatcher.failed(str(trial), MemoryError("of 8 GiB"))

    assert shares == [0.25, 0.5, 1.0]
    assert cluster.dispatcher.failures == {"trial 0": "MemoryError: of 8 GiB"}


def test_no_small_job_starts_while_a_larger_retry_waits(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 9)
    for trial in ("0", "1", "2", "3"):
        cluster.begin(trial)
    cluster.dispatcher.failed("0", MemoryError("of 8 GiB"))
    larger = cluster.dispatcher.next_request("larger")
    assert larger is not None
    assert larger.allocated["gpus"] == 0.5

    cluster.dispatcher.failed("1", RuntimeError("cheese"))
    assert cluster.starts_nothing(), "the larger job has no machine yet"

    cluster.dispatcher.located("larger", "id-a")
    assert cluster.begin("next").job.name == "trial 1"


def test_concurrency_follows_the_machines_up_to_the_maximum(tmp_path: Path) -> None:
    resources = replace(GPU, num_concurrent=1, max_concurrent=3, cpus=8.0, gpus=1.0)
    cluster = Cluster(tmp_path, 9, resources=resources)
    cluster.begin("0", on="a")
    assert cluster.starts_nothing()

    # Three machines join.
    cluster.listed += [machine("b"), machine("c"), machine("d")]
    cluster.begin("1", on="b")
    cluster.begin("2", on="c")
    assert cluster.starts_nothing(), "the maximum is 3"

    # All machines but one leave, and another one joins.
    cluster.listed = [machine("a")]
    cluster.dispatcher.failed("1", DIED)
    cluster.dispatcher.failed("2", DIED)
    assert cluster.starts_nothing(), "the only machine is busy"
    cluster.listed += [machine("e")]
    assert cluster.begin("3", on="e").job.name == "trial 1"


def test_observers_receive_a_reported_error_as_the_reason_of_the_failure(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, stops_jobs=True)
    job = cluster.begin("a").job

    must_stop = cluster.dispatcher.reported("a", EpochReport(1, error="the loss is nan"))
    cluster.dispatcher.completed("a")

    assert must_stop
    cluster.observer.finished.assert_called_once_with(job, "the loss is nan")


def test_after_a_stop_nothing_starts_and_nothing_ends(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 2)
    cluster.begin("a")

    cluster.shutdown.requested = True
    must_stop = cluster.epoch("a", 1)
    cluster.dispatcher.completed("a")

    assert must_stop
    assert cluster.starts_nothing()
    assert cluster.dispatcher.finished
    assert not cluster.dispatcher.failures
