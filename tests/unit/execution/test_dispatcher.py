"""What a dispatcher starts, moves, retries and ends, without Ray."""

import io
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
DIED = ActorDiedError()
NO_DATA = InputError("/data is not a folder.")


def machine(name: str, cpus: float = 16.0) -> Machine:
    return Machine(f"id-{name}", name, {"CPU": cpus, "GPU": 1.0})


class Cluster:
    """A dispatcher of some jobs, on machines that the test lists."""

    def __init__(
        self,
        folder: Path,
        number: int = 1,
        *,
        machines: Sequence[str] = ("a",),
        resources: JobResources = GPU,
        independent_inputs: bool = False,
    ) -> None:
        self.listed = [machine(name) for name in machines]
        self.told: list[str] = []
        self.shutdown = Shutdown(Console(file=io.StringIO()))
        self.observer = Mock(reported=lambda *_: None)
        self.machines = Machines(
            resources, self.told.append, list_machines=lambda: self.listed, clock=iter(range(10**6)).__next__
        )
        jobs = (fake_job(folder, k) for k in range(number))
        self.dispatcher = Dispatcher(
            jobs,
            resources,
            9.0,
            [self.observer],
            self.shutdown,
            self.machines,
            independent_inputs=independent_inputs,
        )

    def begin(self, trial: str, on: str | None = None) -> JobRequest:
        """Start the next job on a machine, by default on the first that it may use."""
        request = self.dispatcher.next_request(trial)
        assert request is not None
        usable = [each.node_id for each in self.listed if each.node_id not in request.avoided]
        node_id = usable[0] if on is None else f"id-{on}"
        assert node_id in usable
        self.dispatcher.located(trial, node_id)
        return request

    def starts_nothing(self) -> bool:
        return self.dispatcher.next_request("none") is None

    def epoch(self, trial: str, number: int) -> bool:
        return self.dispatcher.reported(trial, EpochReport(number))


def test_without_another_machine_a_dead_workers_job_is_retried_on_the_same(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    first = cluster.begin("0")
    assert cluster.starts_nothing(), "the running job may need a retry"
    assert not cluster.dispatcher.finished
    for retry in range(MAX_RETRIES):
        cluster.dispatcher.failed(str(retry), DIED)
        assert cluster.begin(str(retry + 1)) == first


def test_a_new_epoch_starts_a_new_count_of_deaths(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    cluster.begin("0")
    for trial in range(3 * MAX_RETRIES):
        if trial % MAX_RETRIES == 0:
            assert not cluster.epoch(str(trial), 1 + trial)
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
    visited: list[str] = []
    for trial in range(1 + MAX_RETRIES):
        avoided = cluster.begin(str(trial)).avoided
        visited.append(",".join(avoided))
        cluster.dispatcher.failed(str(trial), RuntimeError("cheese"))
    assert visited == ["", "id-a", "id-a,id-b"], "each retry is on another machine"
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
    assert (moved.job.name, moved.avoided) == ("trial 0", ("id-bad",))
    assert cluster.begin("3").avoided == ("id-bad",)
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
    assert cluster.begin("1").avoided == ("id-a",)
    cluster.dispatcher.failed("1", NO_DATA)
    assert cluster.dispatcher.failures == {"trial 0": "/data is not a folder (on a, b)"}
    other = cluster.begin("2")
    assert (other.job.name, other.avoided) == ("trial 1", ())


def test_a_job_that_waits_for_a_machine_that_leaves_stops_the_experiment(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, machines=("a", "b"))
    cluster.begin("0", on="a")
    cluster.dispatcher.failed("0", NO_DATA)
    assert cluster.dispatcher.next_request("1") is not None
    assert not cluster.dispatcher.must_stop
    cluster.listed = [machine("a")]
    assert cluster.dispatcher.must_stop
    assert str(cluster.dispatcher.error) == "no machine can run the jobs: /data is not a folder (on a)"


def test_a_machine_that_left_costs_its_job_no_retry(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    for number in range(2 * MAX_RETRIES):
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


def test_out_of_memory_doubles_the_share(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    shares: list[float] = []
    for trial in range(3):
        request = cluster.begin(str(trial))
        shares.append(request.bundles[0]["GPU"])
        assert request.allocated["gpus"] == shares[-1]
        assert request.resources.threads == GPU.threads
        cluster.dispatcher.failed(str(trial), MemoryError("of 8 GiB"))
    assert shares == [0.25, 0.5, 1.0], "up to a whole GPU"
    assert cluster.dispatcher.failures == {"trial 0": "MemoryError: of 8 GiB"}


def test_no_small_job_starts_while_a_larger_retry_waits(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 9)
    for trial in "0123":
        cluster.begin(trial)
    cluster.dispatcher.failed("0", MemoryError("of 8 GiB"))
    larger = cluster.dispatcher.next_request("larger")
    assert larger is not None
    assert larger.bundles[0]["GPU"] == 0.5
    cluster.dispatcher.failed("1", RuntimeError("cheese"))
    assert cluster.starts_nothing()
    cluster.dispatcher.located("larger", "id-a")
    assert cluster.begin("next").job.name == "trial 1"


def test_concurrency_follows_the_machines_up_to_the_maximum(tmp_path: Path) -> None:
    resources = replace(GPU, num_concurrent=1, max_concurrent=3, cpus=8.0, gpus=1.0)
    cluster = Cluster(tmp_path, 9, resources=resources)
    cluster.begin("0", on="a")
    assert cluster.starts_nothing()
    cluster.listed += [machine("b"), machine("c"), machine("d")]
    cluster.begin("1", on="b")
    cluster.begin("2", on="c")
    assert cluster.starts_nothing(), "the cap is 3"
    cluster.listed = [machine("a")]
    cluster.dispatcher.failed("1", DIED)
    cluster.dispatcher.failed("2", DIED)
    assert cluster.starts_nothing(), "the only machine is busy"
    cluster.listed += [machine("e")]
    assert cluster.begin("3", on="e").job.name == "trial 1"


def test_an_error_that_an_observer_has_stored_is_passed_to_the_others(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    stops = Mock(reported=lambda *_: False)
    cluster.dispatcher._observers = [stops]
    job = cluster.begin("a").job
    assert cluster.dispatcher.reported("a", EpochReport(1, error="the loss is nan"))
    cluster.dispatcher.completed("a")
    stops.finished.assert_called_once_with(job, "the loss is nan")


def test_after_a_stop_nothing_starts_and_nothing_ends(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, 2)
    cluster.begin("a")
    cluster.shutdown.requested = True
    assert cluster.epoch("a", 1)
    cluster.dispatcher.completed("a")
    assert cluster.starts_nothing()
    assert cluster.dispatcher.finished
    assert not cluster.dispatcher.failures
