"""Resources of jobs: how many run at once, and the CPUs and GPUs of each.

A job is a placement group of two bundles on one machine: its trainer, and the tasks of its stream. A stream
thus always has CPUs of its own. Without them Ray Data waits for ever, silently.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prometar.errors import UserError
from tune.config import ResourcesConfig

Node = Mapping[str, float]
"""Resources of a machine as Ray reports them, e.g. {"CPU": 8.0, "GPU": 1.0, "memory": 2e10}."""
PART = 5
"""At most this part of the budget runs at once: a sampler cannot learn from trials that are running."""
_MOST_PER_GPU = 4
"""Jobs on one GPU, unless the user requests a share. More compete for its memory."""


@dataclass(frozen=True)
class ResourcePlan:
    """Concurrent jobs and the resources of each.

    Args:
        cpus: Of trainer and stream together.
        most_cpus, most_gpus: Of the largest machine. Jobs that run out of memory get at most that.
    """

    max_concurrent: int
    cpus: float
    gpus: float
    most_cpus: float = 0.0
    most_gpus: float = 0.0

    @property
    def stream_cpus(self) -> float:
        """CPUs of the stream's bundle: half of the job's."""
        return self.cpus / 2

    @property
    def threads(self) -> int:
        """Torch threads of a trainer on the CPU."""
        return max(1, math.floor(self.cpus))

    def bundles(self) -> list[dict[str, float]]:
        """Return the job's placement group: trainer, then stream."""
        trainer = {"CPU": self.cpus - self.stream_cpus, **({"GPU": self.gpus} if self.gpus else {})}
        return [trainer, {"CPU": self.stream_cpus}]

    def larger(self, bundles: Sequence[Mapping[str, float]]) -> list[dict[str, float]] | None:
        """Return bundles with a trainer of twice the size, or None if no machine has more.

        Results do not change: threads and stream stay as they are. The memory that a job may use grows with
        its share of the GPU, or of the machine's CPUs.

        Example:
            >>> plan = ResourcePlan(4, 1.0, 0.25, most_cpus=8.0, most_gpus=1.0)
            >>> plan.larger([{"CPU": 0.5, "GPU": 0.25}, {"CPU": 0.5}])
            [{'CPU': 0.5, 'GPU': 0.5}, {'CPU': 0.5}]
        """
        trainer, stream = map(dict, bundles)
        kind = "GPU" if trainer.get("GPU") else "CPU"
        most = min(1.0, self.most_gpus) if kind == "GPU" else self.most_cpus - stream["CPU"]
        share = min(2 * trainer[kind], most)
        return [{**trainer, kind: share}, stream] if share > trainer[kind] else None


def on_gpus(nodes: Sequence[Node], resources: ResourcesConfig) -> bool:
    """Return True if jobs train on GPUs.

    Example:
        >>> on_gpus([{"CPU": 8.0, "GPU": 1.0}], ResourcesConfig(gpus_per_trial=0))
        False
    """
    return resources.gpus_per_trial != 0 and any(node.get("GPU") for node in nodes)


def study_plan(
    nodes: Sequence[Node], resources: ResourcesConfig, trials: int, memory: float = 0
) -> tuple[ResourcePlan, str]:
    """Plan the resources per trial, and return the reason as one line.

    At most a fifth of the budget of `trials` runs at once. The trials then get larger shares of the machines.

    Example:
        >>> print(study_plan([{"CPU": 2.0}], ResourcesConfig(), 24)[1])
        2 concurrent trials (all that fit), each with 1 CPU
    """
    reason = f"a fifth of {trials}, so that the search learns from results"
    return plan_resources(nodes, resources, max(1, trials // PART), reason, memory)


def plan_resources(
    nodes: Sequence[Node],
    resources: ResourcesConfig,
    wanted: int,
    reason: str,
    memory: float = 0,
    noun: str = "trial",
) -> tuple[ResourcePlan, str]:
    """Plan at most `wanted` concurrent jobs with shares as large as possible, and say why in one line.

    Args:
        nodes: Resources of each machine, e.g. [{"CPU": 32.0, "GPU": 4.0}].
        reason: Why no more than `wanted` run at once.
        memory: Estimated bytes of a machine's memory per job; 0: unknown. Being an estimate, it never
            prevents one job per machine, nor a requested number.
        noun: Name of a job in messages and options (`--cpus-per-<noun>`).

    Raises:
        UserError: a job does not fit on any machine.
    """
    most_cpus, most_gpus = (
        max((node.get(kind, 0.0) for node in nodes), default=0.0) for kind in ("CPU", "GPU")
    )
    if resources.max_concurrent:
        wanted, reason, memory = resources.max_concurrent, "--max-concurrent", 0

    def fits(cpus: float, gpus: float) -> int:
        return sum(_fit(node, cpus, gpus, memory) for node in nodes)

    cpus = resources.cpus_per_trial or 1.0
    shares = [0.0]
    if most_gpus:  # Ray counts in ten-thousandths
        shares = [math.floor(1e4 / count) / 1e4 for count in range(1, _MOST_PER_GPU + 1)]
    if resources.gpus_per_trial != "auto":
        shares = [resources.gpus_per_trial]
        if shares[0] > 1 and shares[0] % 1:
            raise UserError(f"--gpus-per-{noun} above 1 must be a whole number, got {shares[0]:g}.")
    number = min(wanted, fits(cpus, shares[-1]))
    if not number:
        gpu = f" and {shares[-1]:g} GPU" if shares[-1] else ""
        raise UserError(
            f"A {noun} needs {cpus:g} CPU{gpu} on one machine, Ray's machines have at most {most_cpus:g} CPU "
            f"and {most_gpus:g} GPU. Lower --cpus-per-{noun} or --gpus-per-{noun}, or wait until workers "
            "have joined (clusters/wait.py)."
        )
    gpus = next(share for share in shares if fits(cpus, share) >= number)
    if resources.cpus_per_trial is None:
        larger = range(math.floor(most_cpus), 1, -1)
        cpus = next((float(each) for each in larger if fits(each, gpus) >= number), cpus)
    if number < wanted:
        reason = "all that fit" + (f" of --max-concurrent {wanted}" if resources.max_concurrent else "")
    plan = ResourcePlan(number, cpus, gpus, most_cpus, most_gpus)
    described = _counted(cpus, "CPU") + (f" and {_counted(gpus, 'GPU')}" if gpus else "")
    return plan, f"{_counted(number, f'concurrent {noun}')} ({reason}), each with {described}"


def _fit(node: Node, cpus: float, gpus: float, memory: float) -> int:
    """Return how many jobs fit on a machine. A share lies on one GPU, so 0.4 of one fits twice on each."""
    count = math.floor(node.get("CPU", 0.0) / cpus + 1e-9)
    if gpus:
        num = node.get("GPU", 0.0)
        by_gpu = math.floor(1 / gpus + 1e-9) * math.floor(num) if gpus < 1 else math.floor(num / gpus + 1e-9)
        count = min(count, by_gpu)
    if memory and "memory" in node:
        count = min(count, max(1, math.floor(node["memory"] / memory)))
    return count


def _counted(number: float, noun: str) -> str:
    return f"{round(number, 2):g} {noun}{'s' if number > 1 else ''}"
