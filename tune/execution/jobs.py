"""Jobs: complete values that workers train and observers watch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from prometar.config.settings import Config
from tune.records.schema import EpochReport


@dataclass(frozen=True)
class Job:
    """One trial, one confirmation run, one final-test run or one run of a grid.

    Args:
        name: Shown to users, e.g. "trial 7". Unique among the jobs of a stage.
        runs: Complete configuration of each training run by its folder, an absolute path.
        objective: Name of the objective, `module:Name` of a custom one, or "final".
        val_per_class: Validation images per class, at most.
        number: Number of the trial.
        targets: Other datasets that the prompts are tested on in the end.
        alignment: True if gradient alignment is measured as the runs train.
    """

    name: str
    runs: Mapping[Path, Config]
    objective: str
    val_per_class: int = 20
    number: int = 0
    targets: tuple[str, ...] = ()
    alignment: bool = False

    @property
    def folder(self) -> Path:
        """Folder of the first run."""
        return next(iter(self.runs))

    @property
    def config(self) -> Config:
        """Configuration of the first run."""
        return self.runs[self.folder]

    @property
    def epochs(self) -> int:
        return self.config.train.epochs


class Observer(Protocol):
    """Watches the jobs of a `run_jobs` call, e.g. a live view or an experiment tracker."""

    def started(self, job: Job) -> None:
        """A job was handed out. Retries are not announced."""

    def reported(self, job: Job, report: EpochReport) -> bool | None:
        """A worker reports an epoch. Return False to stop the job, e.g. if it is pruned."""

    def finished(self, job: Job, failure: str) -> None:
        """A job ended. Jobs that a signal interrupts do not end.

        Args:
            failure: Why the job failed or its worker died for good. "" if it finished, or was stopped.
        """
