"""What a study is asked: everything that decides its result, and the numbers that may change later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prometar.config import Config
from prometar.errors import UserError
from prometar.placement import ResourcePlan
from tune.job import Job
from tune.memory import Asked
from tune.spaces import Space


@dataclass(frozen=True)
class Request:
    """A study.

    Args:
        config: The reference: released settings, data, backbone, epochs, and the seed of every trial, so
            that all trials share data order and augmentations.
        space: What is searched. objective: What a trial is scored on. seed: Of the sampler.
        pruner: What stops hopeless trials. val_per_class: Most validation images a class in a score.
        trials: How many are to be run; more may be asked later. final_seeds: Of the last comparison.
    """

    config: Config
    space: Space
    objective: str
    seed: int
    pruner: str
    val_per_class: int
    trials: int
    final_seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise UserError(f"--trials must be at least 1, found {self.trials}")
        if self.val_per_class < 1:
            raise UserError(f"--val-per-class must be at least 1, found {self.val_per_class}")
        if len(set(self.final_seeds)) != len(self.final_seeds) or any(s < 0 for s in self.final_seeds):
            raise UserError(f"--final-seeds must be different numbers from 0 on, found {self.final_seeds}")

    @property
    def identity(self) -> dict[str, Any]:
        """What must not change while a study goes on, as a flat mapping."""
        flat = {
            "objective": self.objective,
            "seed": self.seed,
            "pruner": self.pruner,
            "val_per_class": self.val_per_class,
        }
        flat |= {f"space.{key}": text for key, text in self.space.describe().items()}
        return flat | self.config.flat()

    def reference(self) -> dict[str, Any]:
        """The released values of the searched settings."""
        return self.space.values_of(self.config)

    def search_job(self, asked: Asked, folder: str, plan: ResourcePlan) -> Job:
        """A trial of the search."""
        return self._job(self.config.override(asked.settings), asked.settings, self.objective, folder, plan)

    def final_job(self, settings: dict[str, Any], seed: int, folder: str, plan: ResourcePlan) -> Job:
        """The last comparison's run of these settings and this seed."""
        config = self.config.override({**settings, "train.seed": seed})
        return self._job(config, settings, "final", folder, plan)

    def _job(
        self, config: Config, settings: dict[str, Any], objective: str, folder: str, plan: ResourcePlan
    ) -> Job:
        return Job(
            folder,
            config.model_dump(mode="json"),
            objective,
            settings,
            self.val_per_class,
            plan.threads,
            plan.stream_cpus,
        )
