"""Worker that trains jobs in a Ray actor."""

import errno
import faulthandler
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.exceptions import OutOfDiskError

from prometar.errors import StorageError, first_line, one_line
from prometar.io.files import refused
from tune.execution.jobs import Job
from tune.execution.resources import ResourcePlan

if TYPE_CHECKING:
    from tune.execution.training import JobTraining

STACKS = "hung.txt"
"""In the folder of a job whose worker hung: the stack of every thread."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_OUT_OF_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",  # of a context or a graph, not of torch's allocator
    "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_ALLOC_FAILED",
    "_ALLOCATION_FAILED",  # cuDNN from 9.0 on
    "NVML_SUCCESS == ",  # torch asks who uses the memory, which a MIG device does not tell
    "can't allocate memory",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """A job and the terms on which a worker trains it.

    Args:
        bundles: Allocated resources. They grow if memory runs out, the plan's threads do not.
        timeout_seconds: Seconds without a report after which a worker counts as hung. None: no limit.
    """

    job: Job
    plan: ResourcePlan
    bundles: list[dict[str, float]]
    timeout_seconds: float | None = None

    @property
    def resources(self) -> dict[str, float]:
        """Allocated CPUs and GPUs."""
        cpus, gpus = (sum(bundle.get(kind, 0.0) for bundle in self.bundles) for kind in ("CPU", "GPU"))
        return {"cpus": cpus, "gpus": gpus}


class TrialWorker(tune.Trainable):
    """Trains one job after another. Each step returns the report of one epoch.

    The backbone, the datasets and the frozen features stay in memory between jobs. Tune's checkpoints are
    not used: a run's folder contains its checkpoint, so a job resumes on any worker. Epochs that the
    checkpoints contain are reported again, because the driver may have missed the last ones.
    """

    _task: Task
    _training: "JobTraining | None" = None

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        task: Task = config["task"]
        return tune.PlacementGroupFactory(task.bundles, strategy="STRICT_PACK")

    def setup(self, config: dict[str, Any]) -> None:
        self._task = config["task"]  # started in the first step: errors of a reset are lost in Tune

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        with _typed_errors(), self._watchdog():
            self._training = self._training or self.open_training(self._task)
            report = self._training.advance()
        return {"report": report, "done": report.finished}

    def cleanup(self) -> None:
        if self._training is not None:
            self._training.close()
        self._training = None

    def open_training(self, task: Task) -> "JobTraining":
        """Open the training of a job. Tests replace it.

        Raises:
            StorageError: this machine cannot use its GPU.
        """
        _use_given_gpus()  # before torch is imported
        import torch

        from tune.execution.training import JobTraining

        torch.set_num_threads(task.plan.threads)
        return JobTraining(task)

    @contextmanager
    def _watchdog(self) -> Iterator[None]:
        """Exit if the block takes longer than the timeout. The stack of every thread is then in a file.

        The timer is not a Python thread, so it works while a library holds the interpreter's lock.

        Raises:
            StorageError: this machine does not see the folder that the driver created.
        """
        folder, seconds = self._task.job.folder, self._task.timeout_seconds
        if not folder.is_dir():
            raise StorageError(
                f"{socket.gethostname()} does not see {folder}. Set --out to a folder that all machines share"
            )
        if seconds is None:
            yield
            return
        try:
            file = (folder / STACKS).open("w")
        except OSError as error:
            raise refused(folder / STACKS, error) from None
        with file:
            faulthandler.dump_traceback_later(seconds, exit=True, file=file)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
                with suppress(OSError):
                    (folder / STACKS).unlink()


@contextmanager
def _typed_errors() -> Iterator[None]:
    """Convert errors of other libraries that are due to a full disk or memory.

    Raises:
        StorageError: nothing can be stored. MemoryError: memory has run out.
    """
    try:
        yield
    except OutOfDiskError as error:
        raise StorageError(first_line(error)) from None
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise refused(Path(str(error.filename or "a file")), error) from None
    except RuntimeError as error:  # torch has a class for its own allocator alone
        if not any(sign in str(error) for sign in _OUT_OF_MEMORY):
            raise
        raise MemoryError(first_line(error)) from error


def _use_given_gpus() -> None:
    """Hide all GPUs from a worker to which Ray allocated none.

    Raises:
        StorageError: torch cannot use the GPU that Ray allocated. The machine is to blame, not the job.
    """
    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    if why := _why_no_gpu():
        raise StorageError(
            f"torch cannot use the GPU of the machine {socket.gethostname()}: {why}. Fix its driver or its "
            "torch, or request no GPUs."
        )


def _why_no_gpu() -> str:
    """Return why torch cannot use a GPU in this process; empty if it can."""
    import torch

    with warnings.catch_warnings(record=True) as warned:  # such as of a driver that is too old
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return ""
    built = torch.version.cuda
    why = f"no GPU can be used (torch is built for CUDA {built})" if built else "torch is built without CUDA"
    return why + "".join(f"; {one_line(str(warning.message))[:160]}" for warning in warned[:1])
