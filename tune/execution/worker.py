"""Ray Tune trainable that runs jobs in a Ray actor."""

import errno
import faulthandler
import gc
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune as ray_tune
from ray.exceptions import OutOfDiskError

from prometar.errors import InfrastructureError, first_line, is_out_of_memory
from prometar.io.files import cannot_write_error
from tune.execution.job import Job
from tune.execution.resources import JobResources

if TYPE_CHECKING:
    from prometar.training.cache import RunCache
    from tune.execution.training import JobTraining

STACKS_FILE = "hung.txt"
"""File with the stacks of all threads of a hung worker, in the folder of the job."""
_STORAGE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""Errors of a full disk, an exhausted quota and a read-only file system."""


@dataclass(frozen=True)
class JobRequest:
    """A job with its resources and its timeout.

    Args:
        job: The job.
        resources: Resources per job as planned.
        bundles: Resources of each Ray bundle. Larger than in `resources` after an out-of-memory error.
        timeout_seconds: Seconds without a report after which the worker is restarted. None: no limit.
        avoided: Node IDs of the machines on which the job must not run.
    """

    job: Job
    resources: JobResources
    bundles: list[dict[str, float]]
    timeout_seconds: float | None = None
    avoided: tuple[str, ...] = ()

    @property
    def allocated(self) -> dict[str, float]:
        """Numbers of allocated CPUs and GPUs, with the keys "cpus" and "gpus"."""
        return {
            "cpus": sum(bundle.get("CPU", 0.0) for bundle in self.bundles),
            "gpus": sum(bundle.get("GPU", 0.0) for bundle in self.bundles),
        }


class JobWorker(ray_tune.Trainable):
    """Trainable that runs one job after another. Each step returns the report of one epoch.

    The worker owns a cache that keeps backbone, datasets and features between jobs. Checkpoints are stored in
    the folders of training runs, not by Tune, so that any worker can resume a job. Epochs in existing
    checkpoints are reported again, because the driver may have missed the last reports.
    """

    _request: JobRequest
    _training: "JobTraining | None" = None
    _has_reported_machine = False
    _shared: "RunCache | None" = None

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> ray_tune.PlacementGroupFactory:
        request: JobRequest = config["request"]
        if not request.avoided:
            return ray_tune.PlacementGroupFactory(request.bundles, strategy="STRICT_PACK")
        avoided_ids = ",".join(request.avoided)
        elsewhere = {"ray.io/node-id": f"!in({avoided_ids})"}  # Ray gives each node this label
        return ray_tune.PlacementGroupFactory(
            request.bundles,
            strategy="STRICT_PACK",
            bundle_label_selector=[elsewhere] * len(request.bundles),
        )

    def setup(self, config: dict[str, Any]) -> None:
        # The training is opened in `step`, because Tune hides errors of this method.
        self._request = config["request"]
        self._has_reported_machine = False

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Return the report of the next epoch under the key "report".

        The first step of a job only returns the node ID of this machine, under the key "machine". The driver
        then knows the machine even if the worker dies in its first epoch.
        """
        if not self._has_reported_machine:
            self._has_reported_machine = True
            return {"machine": ray.get_runtime_context().get_node_id()}
        with _convert_errors(), self._watchdog():
            if self._training is None:
                self._training = self.open_training(self._request)
            report = self._training.advance()
        # Without the key "done", because Tune does not pass results with it to the scheduler.
        return {"report": report}

    def cleanup(self) -> None:
        if self._training is not None:
            self._training.close()
        self._training = None

    def open_training(self, request: JobRequest) -> "JobTraining":
        """Open the training of a job. Tests override this method.

        Raises:
            InfrastructureError: torch cannot use the GPU of this machine, or its memory is full although no
                other job shares it.
            MemoryError: other processes use all of the GPU's memory.
        """
        _prepare_gpu(request.allocated["gpus"])  # may set CUDA_VISIBLE_DEVICES, so it precedes torch's import
        import torch

        from prometar.training.cache import RunCache
        from tune.execution.training import JobTraining

        torch.set_num_threads(request.resources.threads)
        if not gc.get_freeze_count():
            # Data streams call `gc.collect`, which skips frozen objects, such as those of imported modules.
            # This saves 0.15 s.
            gc.freeze()
        if self._shared is None:
            self._shared = RunCache()
        return JobTraining(request, self._shared)

    @contextmanager
    def _watchdog(self) -> Iterator[None]:
        """Watch a block. If it exceeds the timeout, write the stacks of all threads to a file, and exit.

        The timer is not a Python thread, so it works even if a library holds the GIL.

        Raises:
            InfrastructureError: the job's folder, which the driver created, is missing here or not writable.
        """
        folder = self._request.job.folder
        seconds = self._request.timeout_seconds
        if not folder.is_dir():
            raise InfrastructureError(
                f"{folder} does not exist on {socket.gethostname()}. Set --out to a shared folder."
            )
        if seconds is None:
            yield
            return
        path = folder / STACKS_FILE
        try:
            file = path.open("w")
        except OSError as error:
            raise cannot_write_error(path, error) from None
        with file:
            faulthandler.dump_traceback_later(seconds, exit=True, file=file)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
                with suppress(OSError):
                    path.unlink()


@contextmanager
def _convert_errors() -> Iterator[None]:
    """Replace errors of other libraries if a file cannot be accessed or memory is exhausted.

    Raises:
        InfrastructureError: the disk is full or read-only, or a file cannot be accessed.
        MemoryError: memory is exhausted.
    """
    try:
        yield
    except OutOfDiskError as error:
        raise InfrastructureError(first_line(error)) from None
    except OSError as error:
        path = Path(str(error.filename or "a file"))
        if error.errno in _STORAGE_ERRNOS:
            raise cannot_write_error(path, error) from None
        raise InfrastructureError(f"Cannot access {path}: {error.strerror or first_line(error)}.") from None
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(first_line(error)) from error


def _prepare_gpu(share: float) -> None:
    """Hide all GPUs if none is allocated to this worker. Otherwise, check its GPU and limit its memory.

    Args:
        share: Share of a GPU that is allocated to the job, at most 1.

    Raises:
        InfrastructureError: torch cannot use the GPU, or other processes use all memory of a GPU that is
            allocated to this job alone.
        MemoryError: other processes use all memory of a shared GPU. With a larger share, the job may start.
    """
    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported
        return
    from prometar.device import gpu_problem, limit_gpu_memory

    try:
        problem = gpu_problem()
    except MemoryError as error:
        if share < 1:
            raise
        # No job of this study shares the GPU, and no retry can get more of it.
        raise InfrastructureError(
            f"Other processes use all memory of the GPU of {socket.gethostname()} ({first_line(error)}). "
            "End them, or request no GPUs."
        ) from None
    if problem:
        raise InfrastructureError(
            f"torch cannot use the GPU of {socket.gethostname()}: {problem}. Fix the driver or the torch "
            "installation, or request no GPUs."
        )
    limit_gpu_memory(share)
