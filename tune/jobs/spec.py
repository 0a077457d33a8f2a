"""What a driver hands to a worker: plain values, complete in themselves."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prometar.distributed.placement import ResourcePlan

_ONE_CPU = ResourcePlan(max_concurrent=1, cpus_per_trial=1.0, gpus_per_trial=0.0)


@dataclass(frozen=True)
class Leg:
    """One training run of a job.

    Args:
        config: A complete configuration, `Config.model_dump(mode="json")`.
        folder: Where its state lies below the job's folder (default "": in the job's folder itself).
    """

    config: dict[str, Any]
    folder: str = ""

    @property
    def name(self) -> dict[str, Any]:
        """What tells it from the job's other runs."""
        return {
            "dataset": self.config["data"]["name"],
            "seed": self.config["train"]["seed"],
        }


@dataclass(frozen=True)
class Terms:
    """How a study's jobs are run, whatever they are; none of it changes their figures.

    Args:
        plan: What a job gets of its machine (default 1 CPU).
        timeout_seconds: Without a result for so long, a worker hangs (default None: never).
        root: The study's folder on the driver's machine, which the jobs' folders lie below (default "").
        files: URL that stands for `root` where workers share no file system with the driver (default None:
            they share it).
        session: Of the command that runs the jobs; another one's workers that hung do not count (default "").
    """

    plan: ResourcePlan = _ONE_CPU
    timeout_seconds: float | None = None
    root: str = ""
    files: str | None = None
    session: str = ""


@dataclass(frozen=True)
class Job:
    """One trial, or one run of a comparison: what to train and where its state lies.

    Args:
        run_dir: Absolute folder of the job.
        legs: Its runs (data sets x seeds); its figures are means over them.
        objective: Their images and scores (`prometar.data.splits.objective`).
        settings: The searched settings alone, for messages.
        val_per_class: Most validation images a class that a search scores on (default 20).
        number: Of the trial that it is, where it is one of the search (default 0).
    """

    run_dir: str
    legs: tuple[Leg, ...]
    objective: str
    settings: dict[str, Any] = field(default_factory=dict)
    val_per_class: int = 20
    terms: Terms = Terms()
    number: int = 0

    @property
    def epochs(self) -> int:
        return int(self.legs[0].config["train"]["epochs"])


def jobs_in(config: Mapping[str, Any]) -> list[Job]:
    """What one worker gets, in the configuration of Tune's trial."""
    jobs: list[Job] = config["jobs"]
    return jobs
