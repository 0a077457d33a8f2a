"""Ray Tune trainable that runs jobs (trials and other groups of training runs) in a Ray actor."""

import errno
import faulthandler
import gc
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune as ray_tune
from ray.exceptions import OutOfDiskError

from prometar.errors import InfrastructureError, first_line, one_line
from prometar.io.files import cannot_write_error
from tune.execution.job import Job
from tune.execution.resources import ResourcePlan

if TYPE_CHECKING:
    from tune.execution.training import JobTraining

STACKS_FILE = "hung.txt"
"""File with the stacks of all threads of a hung worker, in the folder of the job."""
_STORAGE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_OUT_OF_MEMORY_MESSAGES = (
    "CUDA out of memory",
    "CUDA error: out of memory",  # raised by a CUDA context or graph, not by torch's allocator
    "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_ALLOC_FAILED",
    "_ALLOCATION_FAILED",  # cuDNN 9.0 or later
    "NVML_SUCCESS == ",  # torch's failed assertion if memory is exhausted on a MIG device
    "can't allocate memory",
)  # fmt: skip


@dataclass(frozen=True)
class JobRequest:
    """A job with its resources and its timeout.

    Args:
        bundles: Resources of each Ray bundle. Larger than in `resource_plan` after an out-of-memory error.
        timeout_seconds: Seconds without a report after which the worker is restarted. None: no limit.
    """

    job: Job
    resource_plan: ResourcePlan
    bundles: list[dict[str, float]]
    timeout_seconds: float | None = None

    @property
    def allocated(self) -> dict[str, float]:
        """Allocated CPUs and GPUs."""
        cpus, gpus = (sum(bundle.get(kind, 0.0) for bundle in self.bundles) for kind in ("CPU", "GPU"))
        return {"cpus": cpus, "gpus": gpus}


class JobWorker(ray_tune.Trainable):
    """Trainable that runs one job after another. Each step returns the report of one epoch.

    Backbone, datasets and features of the frozen CLIP stay in memory between jobs. Checkpoints are stored in
    the folders of training runs, not by Tune, so that any worker can resume a job. Epochs in existing
    checkpoints are reported again, because the driver may have missed the last reports.
    """

    _request: JobRequest
    _training: "JobTraining | None" = None

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> ray_tune.PlacementGroupFactory:
        request: JobRequest = config["request"]
        return ray_tune.PlacementGroupFactory(request.bundles, strategy="STRICT_PACK")

    def setup(self, config: dict[str, Any]) -> None:
        self._request = config["request"]  # training is opened in `step`, because Tune hides errors here

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        with _convert_errors(), self._watchdog():
            self._training = self._training or self.open_training(self._request)
            report = self._training.advance()
        return {"report": report, "done": report.finished}

    def cleanup(self) -> None:
        if self._training is not None:
            self._training.close()
        self._training = None

    def open_training(self, request: JobRequest) -> "JobTraining":
        """Open the training of a job. Tests override this method.

        Raises:
            InfrastructureError: torch cannot use the GPU of this machine.
        """
        _hide_or_check_gpus()  # may set CUDA_VISIBLE_DEVICES, so it precedes the import of torch
        import torch

        from tune.execution.training import JobTraining

        torch.set_num_threads(request.resource_plan.threads)
        if not gc.get_freeze_count():
            gc.freeze()  # `gc.collect`, which data streams call, then skips imported modules (saves 0.15 s)
        return JobTraining(request)

    @contextmanager
    def _watchdog(self) -> Iterator[None]:
        """If the block exceeds the timeout, write the stack of every thread to a file and exit the process.

        The timer is not a Python thread, so it works even if a library holds the GIL.

        Raises:
            InfrastructureError: the job's folder, which the driver created, is missing here or not writable.
        """
        folder, seconds = self._request.job.folder, self._request.timeout_seconds
        if not folder.is_dir():
            raise InfrastructureError(
                f"{folder} does not exist on {socket.gethostname()}. Set --out to a shared folder"
            )
        if seconds is None:
            yield
            return
        try:
            file = (folder / STACKS_FILE).open("w")
        except OSError as error:
            raise cannot_write_error(folder / STACKS_FILE, error) from None
        with file:
            faulthandler.dump_traceback_later(seconds, exit=True, file=file)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
                with suppress(OSError):
                    (folder / STACKS_FILE).unlink()


@contextmanager
def _convert_errors() -> Iterator[None]:
    """Replace errors that other libraries raise if the disk is full or read-only, or memory is exhausted.

    Raises:
        InfrastructureError: the disk is full or read-only.
        MemoryError: memory is exhausted.
    """
    try:
        yield
    except OutOfDiskError as error:
        raise InfrastructureError(first_line(error)) from None
    except OSError as error:
        if error.errno not in _STORAGE_ERRNOS:
            raise
        raise cannot_write_error(Path(str(error.filename or "a file")), error) from None
    except RuntimeError as error:  # its subclass torch.OutOfMemoryError covers only torch's allocator
        if not any(message in str(error) for message in _OUT_OF_MEMORY_MESSAGES):
            raise
        raise MemoryError(first_line(error)) from error


def _hide_or_check_gpus() -> None:
    """Hide all GPUs if none is allocated to this worker. Otherwise, check that torch can use a GPU.

    Raises:
        InfrastructureError: torch cannot use the GPU. This is a problem of the machine, not of the job.
    """
    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    if problem := _gpu_problem():
        raise InfrastructureError(
            f"torch cannot use the GPU of {socket.gethostname()}: {problem}. Fix the driver or the torch "
            "installation, or request no GPUs."
        )


def _gpu_problem() -> str:
    """Return why torch cannot use a GPU, or "" if it can."""
    import torch

    with warnings.catch_warnings(record=True) as warned:  # e.g. about an old driver
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return ""
    cuda = torch.version.cuda
    problem = f"torch (built for CUDA {cuda}) finds no GPU" if cuda else "torch is built without CUDA"
    return problem + "".join(f"; {one_line(str(warning.message))[:160]}" for warning in warned[:1])
