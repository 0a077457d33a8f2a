"""The worker as Ray calls it, without Ray."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import OutOfDiskError
from ray.util.placement_group import _validate_bundle_label_selector

from prometar.errors import _OUT_OF_MEMORY, _OUT_OF_MEMORY_AFTER_CHECK, InfrastructureError
from tests.support.fake_trial import fake_job
from tune.execution.resources import JobResources
from tune.execution.worker import JobRequest, JobWorker, _prepare_gpu
from tune.records.schema import EpochReport

PLAN = JobResources(num_concurrent=1, max_concurrent=1, cpus=1.0, gpus=0.5)
ONE = EpochReport(epoch=1, finished=True)


def request(folder: Path, number: int) -> JobRequest:
    job = fake_job(folder, number)
    job.folder.mkdir(parents=True, exist_ok=True)
    return JobRequest(job, PLAN, PLAN.bundles(), timeout_seconds=60.0)


class Worker(JobWorker):
    """A worker whose jobs have one epoch, or raise an error."""

    def __init__(self, request: JobRequest, *, error: Exception | None = None) -> None:
        self.opened: list[int] = []
        self.error = error
        self.setup({"request": request})

    def open_training(self, request: JobRequest) -> "Worker":  # type: ignore[override]
        self.opened.append(request.job.trial_number)
        if request.job.trial_number == 1:
            raise MemoryError
        return self

    def close(self) -> None:
        """Nothing is open."""

    def advance(self) -> EpochReport:
        if self.error is not None:
            raise self.error
        return ONE


@pytest.fixture(autouse=True)
def _on_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "node"))


def located(request: JobRequest, *, error: Exception | None = None) -> Worker:
    """A worker that has said where it runs."""
    worker = Worker(request, error=error)
    worker.step()
    return worker


def test_a_worker_says_where_it_runs_before_it_opens_a_job(tmp_path: Path) -> None:
    """Tune loses the errors of a reset."""
    worker = Worker(request(tmp_path, 0))
    assert worker.step() == {"machine": "node"}
    assert worker.opened == []
    assert worker.step() == {"report": ONE}
    assert worker.reset_config({"request": request(tmp_path, 1)})
    assert worker.opened == [0]
    assert worker.step() == {"machine": "node"}
    with pytest.raises(MemoryError):
        worker.step()
    assert worker.reset_config({"request": request(tmp_path, 2)})
    assert worker.step() == {"machine": "node"}
    assert worker.step() == {"report": ONE}
    assert worker.opened == [0, 1, 2]
    assert not list(tmp_path.rglob("hung*")), "a watch that is over leaves nothing"


def test_a_machine_must_see_the_drivers_folder(tmp_path: Path) -> None:
    own = request(tmp_path, 0)
    own.job.folder.rmdir()
    with pytest.raises(
        InfrastructureError, match=r"trials/0000 does not exist on .*\. Set --out to a shared folder"
    ):
        located(own).step()


FAULTS: list[Callable[[], Exception]] = [
    lambda: OSError(errno.ENOSPC, "No space left on device", "/tmp/ray"),
    lambda: OSError(errno.EIO, "Input/output error", "/data/a.jpg"),
    lambda: OSError(errno.ESTALE, "Stale file handle", "/data/a.jpg"),
    OutOfDiskError,
]


@pytest.mark.parametrize("error", FAULTS)
def test_a_disk_that_is_full_or_fails_is_a_fault_of_the_machine(
    error: Callable[[], Exception], tmp_path: Path
) -> None:
    with pytest.raises(InfrastructureError):
        located(request(tmp_path, 0), error=error()).step()


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
        "CUDA error: out of memory",
        "CUDA driver error: out of memory",
        "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "GET was unable to find an engine to execute this computation",
    ],
)
def test_messages_of_torch_and_its_libraries_mean_a_lack_of_memory(message: str, tmp_path: Path) -> None:
    with pytest.raises(MemoryError):
        located(request(tmp_path, 0), error=RuntimeError(message)).step()


@pytest.mark.parametrize("sign", [*_OUT_OF_MEMORY, *_OUT_OF_MEMORY_AFTER_CHECK, "something else"])
def test_memory_that_has_run_out_has_one_type(sign: str, tmp_path: Path) -> None:
    error = RuntimeError(f"{sign} (of 8 GiB)\nFor debugging consider passing A=1")
    with pytest.raises(RuntimeError if sign == "something else" else MemoryError, match="of 8 GiB"):
        located(request(tmp_path, 0), error=error).step()


def test_a_worker_that_got_a_gpu_checks_it_and_limits_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = ["", "the driver is too old"]
    limits: list[float] = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr("prometar.device.gpu_problem", lambda: problems.pop(0))
    monkeypatch.setattr("prometar.device.limit_gpu_memory", limits.append)
    monkeypatch.setattr("socket.gethostname", lambda: "node3")
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [0])
    _prepare_gpu(0.25)
    assert limits == [0.25]
    with pytest.raises(InfrastructureError, match=r"node3: the driver is too old.*request no GPUs"):
        _prepare_gpu(0.25)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_a_whole_gpu_whose_memory_other_processes_fill_is_a_fault_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job with a smaller share is retried with more. Without this limit, every job would fail."""

    def full() -> str:
        raise MemoryError("CUDA error: out of memory")

    monkeypatch.setattr("prometar.device.gpu_problem", full)
    monkeypatch.setattr("socket.gethostname", lambda: "node3")
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [0])
    with pytest.raises(MemoryError):
        _prepare_gpu(0.5)
    with pytest.raises(
        InfrastructureError, match=r"all memory of the GPU of node3 \(CUDA error: out of memory"
    ):
        _prepare_gpu(1.0)


def test_a_worker_without_a_gpu_hides_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(ray, "get_gpu_ids", list)
    _prepare_gpu(0.0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_a_job_is_placed_away_from_the_machines_that_it_avoids(tmp_path: Path) -> None:
    elsewhere = replace(request(tmp_path, 0), avoided=("a" * 56, "b" * 56))
    placed = Worker.default_resource_request({"request": elsewhere})
    selector = {"ray.io/node-id": f"!in({'a' * 56},{'b' * 56})"}
    assert placed._bound.arguments["bundle_label_selector"] == [selector] * 2
    assert _validate_bundle_label_selector([selector]) is None  # Ray accepts it
