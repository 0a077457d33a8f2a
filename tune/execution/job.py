"""Jobs that workers run, and the protocol for observers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from prometar.config.settings import Config
from tune.records.schema import EpochReport


@dataclass(frozen=True)
class Job:
    """Unit of work of a Ray actor: a group of training runs that advance together, epoch by epoch.

    A job is a trial, a rerun of a trial with a fresh seed, or a run of the final test or of
    `prometar reproduce`.

    Args:
        name: Name in messages, e.g. "trial 7". It is unique within a `run_jobs` call.
        configs: Complete configuration of each training run, by absolute path of the run's folder. A trial
            with several seeds or datasets has several runs.
        objective: Name of a built-in objective, or `module:Name` of a custom one.
        val_per_class: Maximum number of validation images per class.
        trial_number: Number of the trial whose settings the job uses. Unused by `prometar reproduce`.
        targets: Names of other datasets on which to test the prompts after training.
        records_alignment: True to record the cosine of support and query gradients during training.
        predictions: True to write predictions.parquet into the folder of each run.
    """

    name: str
    configs: Mapping[Path, Config]
    objective: str
    val_per_class: int = 20
    trial_number: int = 0
    targets: tuple[str, ...] = ()
    records_alignment: bool = False
    predictions: bool = False

    @property
    def folder(self) -> Path:
        """Folder of the first run."""
        return next(iter(self.configs))

    @property
    def config(self) -> Config:
        """Configuration of the first run."""
        return self.configs[self.folder]

    @property
    def epochs(self) -> int:
        """Number of epochs of the longest run."""
        return max(config.train.epochs for config in self.configs.values())


class Observer(Protocol):
    """Observer of the jobs of a `run_jobs` call, e.g. a live view or an experiment tracker."""

    def started(self, job: Job) -> None:
        """Called when a job is submitted to Ray Tune, but not when it is retried."""

    def reported(self, job: Job, report: EpochReport) -> bool | None:
        """Called when a worker reports an epoch.

        Returns:
            False to stop the job, e.g. to prune it. With True or None, the job continues.
        """

    def finished(self, job: Job, failure: str) -> None:
        """Called when a job ends: all its epochs are done, it failed, or an observer stopped it.

        Not called if a signal interrupts the job.

        Args:
            failure: Reason of the failure, or "" if the job did not fail.
        """
