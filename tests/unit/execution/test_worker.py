"""The worker as Ray calls it, without Ray."""

import contextlib
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
from tune.execution.worker import STACKS_FILE, JobRequest, JobWorker, _prepare_gpu
from tune.records.schema import EpochReport

RESOURCES = JobResources(num_concurrent=1, max_concurrent=1, cpus=1.0, gpus=0.5)
ONLY_REPORT = EpochReport(epoch=1, finished=True)


def new_request(folder: Path, number: int = 0) -> JobRequest:
    """A request for trial NUMBER, whose folder exists."""
    job = fake_job(folder, number)
    job.folder.mkdir(parents=True, exist_ok=True)
    return JobRequest(job, RESOURCES, RESOURCES.bundles(), timeout_seconds=60.0)


class Worker(JobWorker):
    """A worker whose jobs have one epoch.

    Args:
        request: First job.
        error: Error that jobs raise in their epoch.

    Attributes:
        opened: Numbers of the trials whose training has been opened.
        refuses_to_open: Error that the next job raises when it is opened.
    """

    def __init__(self, request: JobRequest, *, error: Exception | None = None) -> None:
        self.opened: list[int] = []
        self.refuses_to_open: Exception | None = None
        self.error = error
        self.setup({"request": request})

    def open_training(self, request: JobRequest) -> "Worker":  # type: ignore[override]
        self.opened.append(request.job.trial_number)
        if self.refuses_to_open is not None:
            raise self.refuses_to_open
        return self

    def close(self) -> None:
        """Nothing is open."""

    def advance(self) -> EpochReport:
        if self.error is not None:
            raise self.error
        return ONLY_REPORT


@pytest.fixture(autouse=True)
def _on_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(get_node_id=lambda: "node")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)


def located_worker(request: JobRequest, *, error: Exception | None = None) -> Worker:
    """A worker that has reported its machine. Its next step runs an epoch."""
    worker = Worker(request, error=error)
    worker.step()
    return worker


def test_a_worker_reports_its_machine_before_it_opens_each_job(tmp_path: Path) -> None:
    worker = Worker(new_request(tmp_path, 0))
    assert worker.step() == {"machine": "node"}
    assert worker.opened == []
    assert worker.step() == {"report": ONLY_REPORT}

    assert worker.reset_config({"request": new_request(tmp_path, 1)})
    assert worker.step() == {"machine": "node"}
    assert worker.opened == [0]
    assert worker.step() == {"report": ONLY_REPORT}
    assert worker.opened == [0, 1]


def test_a_job_that_cannot_be_opened_raises_its_error_in_a_step_and_the_worker_takes_another(
    tmp_path: Path,
) -> None:
    """Tune loses errors of `setup` and `reset_config`."""
    worker = located_worker(new_request(tmp_path, 0))
    worker.refuses_to_open = MemoryError()
    with pytest.raises(MemoryError):
        worker.step()

    worker.refuses_to_open = None
    assert worker.reset_config({"request": new_request(tmp_path, 1)})
    assert worker.step() == {"machine": "node"}
    assert worker.step() == {"report": ONLY_REPORT}


@pytest.mark.parametrize("error", [None, MemoryError()], ids=["epoch-ends", "epoch-fails"])
def test_an_epoch_within_the_timeout_leaves_no_file_of_stacks(
    error: Exception | None, tmp_path: Path
) -> None:
    worker = located_worker(new_request(tmp_path), error=error)
    with contextlib.suppress(MemoryError):
        worker.step()
    assert not list(tmp_path.rglob(STACKS_FILE))


def test_a_machine_must_see_the_drivers_folder(tmp_path: Path) -> None:
    request = new_request(tmp_path)
    request.job.folder.rmdir()
    expected = r"trials/0000 does not exist on .*\. Set --out to a shared folder"
    with pytest.raises(InfrastructureError, match=expected):
        located_worker(request).step()


FAULTS: dict[str, Callable[[], Exception]] = {
    "full": lambda: OSError(errno.ENOSPC, "No space left on device", "/tmp/ray"),
    "broken": lambda: OSError(errno.EIO, "Input/output error", "/data/a.jpg"),
    "not mounted any more": lambda: OSError(errno.ESTALE, "Stale file handle", "/data/a.jpg"),
    "full for Ray": OutOfDiskError,
}


@pytest.mark.parametrize("make_error", FAULTS.values(), ids=FAULTS)
def test_a_disk_that_is_full_or_fails_is_a_fault_of_the_machine(
    make_error: Callable[[], Exception], tmp_path: Path
) -> None:
    with pytest.raises(InfrastructureError):
        located_worker(new_request(tmp_path), error=make_error()).step()


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
        located_worker(new_request(tmp_path), error=RuntimeError(message)).step()


@pytest.mark.parametrize("sign", [*_OUT_OF_MEMORY, *_OUT_OF_MEMORY_AFTER_CHECK])
def test_each_known_sign_of_a_lack_of_memory_becomes_a_memory_error(sign: str, tmp_path: Path) -> None:
    error = RuntimeError(f"{sign} (of 8 GiB)\nFor debugging consider passing A=1")
    with pytest.raises(MemoryError, match="of 8 GiB"):
        located_worker(new_request(tmp_path), error=error).step()


def test_another_error_of_the_job_is_not_replaced(tmp_path: Path) -> None:
    error = RuntimeError("something else (of 8 GiB)")
    with pytest.raises(RuntimeError) as caught:
        located_worker(new_request(tmp_path), error=error).step()
    assert caught.value is error


@pytest.fixture
def gpu_of_node3(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ray allocate GPU 0 of a machine with the host name node3 to this worker."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr("socket.gethostname", lambda: "node3")
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [0])


@pytest.mark.usefixtures("gpu_of_node3")
def test_the_memory_of_a_usable_gpu_is_limited_to_the_share_of_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits: list[float] = []
    monkeypatch.setattr("prometar.device.gpu_problem", lambda: "")
    monkeypatch.setattr("prometar.device.limit_gpu_memory", limits.append)

    _prepare_gpu(0.25)

    assert limits == [0.25]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


@pytest.mark.usefixtures("gpu_of_node3")
def test_a_gpu_that_torch_cannot_use_is_a_fault_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prometar.device.gpu_problem", lambda: "the driver is too old")
    with pytest.raises(InfrastructureError, match=r"node3: the driver is too old.*request no GPUs"):
        _prepare_gpu(0.25)


@pytest.fixture
def full_gpu(gpu_of_node3: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let other processes use all memory of the GPU."""

    def find_problem() -> str:
        raise MemoryError("CUDA error: out of memory")

    monkeypatch.setattr("prometar.device.gpu_problem", find_problem)


@pytest.mark.usefixtures("full_gpu")
def test_a_job_whose_shared_gpu_is_full_lacks_memory_so_that_it_is_retried_with_a_larger_share() -> None:
    with pytest.raises(MemoryError):
        _prepare_gpu(0.5)


@pytest.mark.usefixtures("full_gpu")
def test_a_whole_gpu_that_is_full_is_a_fault_of_the_machine_because_no_retry_gets_more_of_it() -> None:
    expected = r"all memory of the GPU of node3 \(CUDA error: out of memory"
    with pytest.raises(InfrastructureError, match=expected):
        _prepare_gpu(1.0)


def test_a_worker_without_a_gpu_hides_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(ray, "get_gpu_ids", list)
    _prepare_gpu(0.0)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_a_job_is_placed_away_from_the_machines_that_it_avoids(tmp_path: Path) -> None:
    first_node = "a" * 56  # Ray's node IDs have 56 digits
    second_node = "b" * 56
    request = replace(new_request(tmp_path), avoided=(first_node, second_node))

    placement = Worker.default_resource_request({"request": request})

    selector = {"ray.io/node-id": f"!in({first_node},{second_node})"}
    assert placement._bound.arguments["bundle_label_selector"] == [selector] * 2
    assert _validate_bundle_label_selector([selector]) is None  # Ray accepts it
