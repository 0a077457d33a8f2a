"""What hands out jobs and decides on them."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import OutOfDiskError
from ray.tune import PlacementGroupFactory
from rich.console import Console

from prometar.distributed.placement import Room
from prometar.errors import StorageError
from tests.support.driver import small_spec
from tune.execution.jobs import (
    MAX_FAILURES,
    ListedJobs,
    MakeJob,
    SearchJobs,
    out_of_memory,
    reason_of,
)
from tune.execution.stopping import Stopping
from tune.jobs.spec import Job, Leg
from tune.optimizer.ask_tell import Asked, Memory

PLACE = PlacementGroupFactory([{"CPU": 0.5}, {"CPU": 0.5}])


def tune_trial(name: str) -> Any:
    counts = SimpleNamespace(num_failures=0)
    return SimpleNamespace(trial_id=name, placement_group_factory=PLACE, run_metadata=counts)


WORKER = tune_trial("w0")


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    spec = small_spec(trials=5, seed=1)
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    return Memory(storage, "s", spec, reference=spec.reference())


def job_in(folder: Path) -> MakeJob:
    def job(asked: Asked) -> Job:
        (folder / str(asked.number)).mkdir()
        own = str(folder / str(asked.number))
        return Job(own, (Leg({}),), "drift", asked.settings, number=asked.number)

    return job


def jobs_of(memory: Memory, folder: Path) -> SearchJobs:
    return SearchJobs(memory, job_in(folder), 5, Stopping(Console()), Room(2, 0))


def result(member: int, epoch: int, **more: Any) -> dict[str, Any]:
    return {"member": member, "epoch": epoch, "objective": 50.0, "finished": False, **more}


def test_what_a_lost_worker_had_not_begun_is_handed_out_again_and_not_for_ever(
    memory: Memory, tmp_path: Path
) -> None:
    jobs = jobs_of(memory, tmp_path)
    first = jobs.suggest("w0")
    for times in range(MAX_FAILURES):
        jobs.unbegun.add(f"w{times}")
        jobs.on_end(f"w{times}", error=True)
        assert jobs.suggest(f"w{times + 1}") == first
    jobs.unbegun.add(f"w{MAX_FAILURES}")
    jobs.on_end(f"w{MAX_FAILURES}", error=True)
    assert [t.state for t in memory.ended()] == ["FAIL"]
    assert jobs.suggest("next") != first


@pytest.mark.parametrize(
    "reason",
    [
        "prometar.errors.StorageError: cannot write /a/b: Input/output error",
        "OSError: [Errno 28] No space left on device: '/tmp/ray/trial'",
        "OSError: [Errno 30] Read-only file system: '/tmp/ray/trial'",
        "FileNotFoundError: [Errno 2] No usable temporary directory found in ['/tmp']",
        f"raised by the worker: {str(OutOfDiskError('full')).splitlines()[-1]}",
    ],
)
def test_a_disk_that_refuses_ends_the_study_and_fails_no_trial(
    memory: Memory, tmp_path: Path, reason: str
) -> None:
    listed = [Job(str(tmp_path / "job"), (Leg({}),), "final")]
    for jobs in (jobs_of(memory, tmp_path), ListedJobs(listed, Stopping(Console()), Room(2, 0))):
        jobs.suggest("w0")
        jobs.reasons["w0"] = reason
        with pytest.raises(StorageError, match=re.escape(reason.split(": ", 1)[1])):
            jobs.on_end("w0", error=True)
    assert not memory.ended()


def test_what_a_second_try_has_got_over_is_forgotten(memory: Memory, tmp_path: Path) -> None:
    jobs = jobs_of(memory, tmp_path)
    jobs.suggest("w0")
    jobs.reasons["w0"] = "OSError: [Errno 28] No space left on device"
    jobs.on_result(WORKER, result(0, 1, finished=True))  # type: ignore[arg-type]
    jobs.on_end("w0", error=False)
    assert [trial.state for trial in memory.ended()] == ["COMPLETE"]


def test_deaths_count_until_an_epoch_is_done_that_was_not(memory: Memory, tmp_path: Path) -> None:
    jobs = jobs_of(memory, tmp_path)
    jobs.suggest("w0")
    counts = []
    for epoch in (1, 1, 2, 1, 2, 3):  # a new worker tells again what the one before it had done
        WORKER.run_metadata.num_failures = 1
        jobs.on_result(WORKER, result(0, epoch))  # type: ignore[arg-type]
        counts.append(WORKER.run_metadata.num_failures)
    assert counts == [0, 1, 0, 1, 1, 0]


_OF_TORCH = """
Search for `cudaErrorAssert' in https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html for more information.
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
For debugging consider passing CUDA_LAUNCH_BLOCKING=1
Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.

"""  # noqa: E501
"""What torch adds to a GPU's error."""


@pytest.mark.parametrize(
    ("said", "of_memory"),
    [
        ("torch.AcceleratorError: CUDA error: device-side assert triggered", False),
        ("torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered", False),
        ("torch.AcceleratorError: CUDA error: CUDA-capable device(s) is/are busy or unavailable", False),
        (
            "torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device",
            False,
        ),
        ("torch.AcceleratorError: CUDA error: out of memory", True),
        ("torch.AcceleratorError: HIP error: an illegal memory access was encountered", False),
    ],
)
def test_a_gpus_error_is_told_in_its_own_words(tmp_path: Path, said: str, of_memory: bool) -> None:
    trial = tune_trial("w0")
    trial.error_file = str(tmp_path / "error.txt")
    after = _OF_TORCH.replace("CUDA", "HIP") if "HIP" in said else _OF_TORCH
    Path(trial.error_file).write_text(f"Failure #1 (occurred at 1)\nTraceback\n  at line 1\n{said}{after}")
    assert reason_of(trial) == said
    assert out_of_memory(trial) == of_memory


@pytest.mark.parametrize(
    "said",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "RuntimeError: cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "RuntimeError: cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
        'RuntimeError: NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":1154, please',
    ],
)
def test_a_gpu_has_many_words_for_a_lack_of_memory(tmp_path: Path, said: str) -> None:
    trial = tune_trial("w0")
    trial.error_file = str(tmp_path / "error.txt")
    Path(trial.error_file).write_text(f"Failure #1 (occurred at 1)\nTraceback\n{said}\n")
    assert out_of_memory(trial)
    assert reason_of(trial) == said
