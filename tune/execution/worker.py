"""Worker that trains jobs in a Ray actor."""

import faulthandler
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune

from prometar.errors import StorageError
from prometar.io.files import refused
from tune.execution.jobs import EpochReport, Job
from tune.execution.resources import STRATEGY, ResourcePlan

MAX_HUNG = 2
"""Workers of one job that may hang. The first time its machine or file system may be to blame."""


@dataclass(frozen=True)
class Task:
    """A job and the terms on which a worker trains it.

    Args:
        bundles: Allocated resources. They grow if memory runs out, the plan's threads do not.
        timeout_seconds: Seconds without a report after which a worker counts as hung. None: no limit.
        session: Name of the `run_jobs` call. Workers that hung in earlier calls do not count.
    """

    job: Job
    plan: ResourcePlan
    bundles: list[dict[str, float]]
    timeout_seconds: float | None
    session: str

    @property
    def folder(self) -> Path:
        """Folder of the job's first run."""
        return Path(self.job.runs[0].folder)

    @property
    def resources(self) -> dict[str, float]:
        """Allocated CPUs and GPUs."""
        cpus, gpus = (sum(bundle.get(kind, 0.0) for bundle in self.bundles) for kind in ("CPU", "GPU"))
        return {"cpus": cpus, "gpus": gpus}


class Training(Protocol):
    """Training of one job."""

    def advance(self) -> EpochReport:
        """Return the report of the next epoch. Train it unless a checkpoint contains it."""

    def close(self) -> None:
        """Release streams and GPU memory."""


class TrialWorker(tune.Trainable):
    """Trains one job after another. Each step returns the report of one epoch.

    The backbone, the datasets and the frozen features stay in memory between jobs. Tune's checkpoints are
    not used: a run's folder contains its checkpoint, so a job resumes on any worker. Epochs that the
    checkpoints contain are reported again, because the driver may have missed the last ones.
    """

    _pending: Task | None = None
    _training: Training | None = None

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        task: Task = config["task"]
        return tune.PlacementGroupFactory(task.bundles, strategy=STRATEGY)

    def setup(self, config: dict[str, Any]) -> None:
        self._pending = config["task"]  # started in the first step: errors of a reset are lost in Tune

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._pending = new_config["task"]
        return True

    def step(self) -> Mapping[str, Any]:  # type: ignore[override]  # Tune copies it into a dict
        if self._pending is not None:
            self._task, self._pending = self._pending, None
            _require_shared(self._task.folder)
        with self._watchdog():
            if self._training is None and (failure := self._hung()):
                report = EpochReport(failed=failure, finished=True)
            else:
                self._training = self._training or self.open_training(self._task)
                report = self._training.advance()
        return {**report, "done": bool(report.get("finished"))}

    def cleanup(self) -> None:
        if self._training is not None:
            self._training.close()
        self._training = None

    def open_training(self, task: Task) -> Training:
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
        """
        if self._task.timeout_seconds is None:
            yield
            return
        # A file per process, since Tune may start a second worker for a job and drop it.
        path = self._stacks(f"{socket.gethostname()}-{os.getpid()}")
        try:
            file = path.open("w")
        except OSError as error:
            raise refused(path, error) from None
        with file:
            faulthandler.dump_traceback_later(self._task.timeout_seconds, exit=True, file=file)
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
        with suppress(OSError):
            path.unlink()

    def _hung(self) -> str:
        """Return why the job fails if too many of its workers hung, "" otherwise."""
        if self._task.timeout_seconds is None:
            return ""
        pattern = self._stacks("*")
        files = self._task.folder.glob(pattern.name)
        if sum(1 for file in files if file.stat().st_size) < MAX_HUNG:  # an empty one is in use
            return ""
        return (
            f"{MAX_HUNG} workers hung: no result within {self._task.timeout_seconds:g} s. "
            f"Their stacks are in {pattern}. Fix the cause, or set a longer resources.trial_timeout."
        )

    def _stacks(self, process: str) -> Path:
        """File that shows where a worker of the job hung."""
        return self._task.folder / f"hung-{self._task.session}-{process}.txt"


def _use_given_gpus() -> None:
    """Hide all GPUs from a worker to which Ray allocated none.

    Raises:
        StorageError: torch cannot use the GPU that Ray allocated. The machine is to blame, not the job.
    """
    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    from prometar.device import why_no_gpu

    if why := why_no_gpu():
        raise StorageError(
            f"torch cannot use the GPU of the machine {socket.gethostname()}: {why}. Fix its driver or its "
            "torch, or request no GPUs."
        )


def _require_shared(folder: Path) -> None:
    """
    Raises:
        StorageError: this machine does not see a folder that the driver created.
    """
    if not folder.is_dir():
        raise StorageError(
            f"{socket.gethostname()} does not see {folder}. Set --out to a folder that all machines share."
        )
