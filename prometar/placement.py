"""The resource plan: what a run gets, how many run at once, and a refusal of what cannot run.

A run is a placement group of two bundles: its trainer, and the tasks of its stream. So a stream always has
a place to run, even when runs hold every CPU; without it Ray Data waits for ever, in silence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from prometar.errors import UserError


@dataclass(frozen=True)
class ResourcePlan:
    """Runs at a time, the CPUs (trainer and stream together) and GPUs of each, and what a run is called."""

    max_concurrent: int
    cpus_per_trial: float
    gpus_per_trial: float
    noun: str = "trial"

    @property
    def stream_cpus(self) -> float:
        """CPUs of the stream's bundle: half of the run's."""
        return self.cpus_per_trial / 2

    @property
    def threads(self) -> int:
        """Torch threads of a trainer on the CPU."""
        return max(1, math.floor(self.cpus_per_trial))

    def bundles(self) -> list[dict[str, float]]:
        """The run's placement group: trainer, then stream."""
        trainer = {"CPU": self.cpus_per_trial - self.stream_cpus}
        if self.gpus_per_trial:
            trainer["GPU"] = self.gpus_per_trial
        return [trainer, {"CPU": self.stream_cpus}]

    def describe(self, cluster: Mapping[str, float]) -> str:
        """The plan as one line."""
        gpus = f" and {self.gpus_per_trial:g} GPU" if self.gpus_per_trial else ""
        return (
            f"{self.max_concurrent} {self.noun}s at a time, each with {self.cpus_per_trial:g} CPU (half for "
            f"its stream){gpus}, of {cluster.get('CPU', 0):g} CPUs and {cluster.get('GPU', 0):g} GPUs"
        )


def plan_resources(
    cluster: Mapping[str, float],
    *,
    max_concurrent: int | None = None,
    cpus_per_trial: float = 1.0,
    gpus_per_trial: float | None = None,
    noun: str = "trial",
) -> ResourcePlan:
    """A plan that fits a cluster's resources ({"CPU": 2.0, "GPU": 1.0}).

    Args:
        max_concurrent: Runs at a time at most; None: as many as fit.
        cpus_per_trial: For trainer and stream together (default 1).
        gpus_per_trial: A share of a GPU; None: one where there are GPUs, else 0.
        noun: What a run is called in messages and options (`--cpus-per-<noun>`).
    Raises:
        UserError: not even one run fits, with the figures; or a number that makes no sense.
    """
    if not 0.1 <= cpus_per_trial < math.inf:
        raise UserError(f"--cpus-per-{noun} must be at least 0.1, found {cpus_per_trial:g}")
    if max_concurrent is not None and max_concurrent < 1:
        raise UserError(f"--max-concurrent must be at least 1, found {max_concurrent}")
    num_gpus = cluster.get("GPU", 0.0)
    gpus = (1.0 if num_gpus else 0.0) if gpus_per_trial is None else gpus_per_trial
    if gpus != 0 and not 0.01 <= gpus < math.inf:
        raise UserError(f"--gpus-per-{noun} must be 0 or at least 0.01, found {gpus:g}")
    fits = _fits("CPU", cluster.get("CPU", 0.0), cpus_per_trial, noun)
    if gpus:
        fits = min(fits, _fits("GPU", num_gpus, gpus, noun))
    return ResourcePlan(min(fits, max_concurrent or fits), cpus_per_trial, gpus, noun)


def _fits(kind: str, there: float, each: float, noun: str) -> int:
    count = math.floor(there / each + 1e-9)
    if count < 1:
        option = f"--{kind.lower()}s-per-{noun}"
        raise UserError(f"a {noun} asks for {each:g} {kind}, Ray has {there:g}: lower {option}")
    return count
