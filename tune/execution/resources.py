"""Number of concurrent jobs (trials, or training runs of later stages) and resources of each job.

A job has a placement group of two bundles on one machine: one for the trainer, one for the tasks of the data
stream. The stream's CPUs are reserved, because Ray Data waits forever if trainers occupy every CPU.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prometar.cli.console import format_count
from prometar.errors import UserError
from tune.config import ResourcesConfig

NodeResources = Mapping[str, float]
"""Resources of a machine as Ray reports them, e.g. {"CPU": 8.0, "GPU": 1.0, "memory": 2e10}."""
_MAX_JOBS_PER_GPU = 4
"""Maximum number of jobs on one GPU, unless --gpus-per-trial is set. With more, GPU memory may run out."""
_TOLERANCE = 1e-9  # of rounding errors in quotients


@dataclass(frozen=True, kw_only=True)
class JobResources:
    """Number of concurrent jobs, and the resources of each.

    Args:
        num_concurrent: Number of concurrent jobs on the machines of the cluster at the time of planning.
        max_concurrent: Maximum number of concurrent jobs, even if machines join.
        cpus: CPUs per job, for trainer and stream together.
        gpus: GPUs per job, all for the trainer.
        max_cpus: Largest number of CPUs of a machine. A retry cannot have more.
        max_gpus: Largest number of GPUs of a machine. A retry cannot have more.
        memory: Estimated memory per job in bytes, 0 if unknown.
    """

    num_concurrent: int
    max_concurrent: int
    cpus: float
    gpus: float
    max_cpus: float = 0.0
    max_gpus: float = 0.0
    memory: float = 0.0

    def capacity(self, node: NodeResources) -> int:
        """Return the number of jobs that fit on a machine.

        Example:
            >>> resources = JobResources(num_concurrent=1, max_concurrent=1, cpus=2.0, gpus=0.5)
            >>> resources.capacity({"CPU": 32.0, "GPU": 2.0})
            4
        """
        return _node_capacity(node, self.cpus, self.gpus, self.memory)

    @property
    def stream_cpus(self) -> float:
        """CPUs of the stream's bundle: half of the CPUs of the job."""
        return self.cpus / 2

    @property
    def threads(self) -> int:
        """Number of torch threads of a trainer: one per CPU of the job, because the stream is often idle."""
        return max(1, math.floor(self.cpus))

    def bundles(self) -> list[dict[str, float]]:
        """Return the bundles of a job's placement group: the trainer's, then the stream's."""
        trainer = {"CPU": self.cpus - self.stream_cpus}
        if self.gpus:
            trainer["GPU"] = self.gpus
        return [trainer, {"CPU": self.stream_cpus}]

    def enlarge(self, bundles: Sequence[Mapping[str, float]]) -> list[dict[str, float]] | None:
        """Return bundles for a retry after an out-of-memory error, or None if they cannot be larger.

        Double the trainer's GPU share (at most 1) or, without GPUs, its CPUs, so that fewer jobs share the
        memory. Threads and the stream's bundle stay the same, so results do not change.

        Example:
            >>> resources = JobResources(
            ...     num_concurrent=4, max_concurrent=4, cpus=1.0, gpus=0.25, max_cpus=8.0, max_gpus=1.0
            ... )
            >>> resources.enlarge([{"CPU": 0.5, "GPU": 0.25}, {"CPU": 0.5}])
            [{'CPU': 0.5, 'GPU': 0.5}, {'CPU': 0.5}]
        """
        trainer, stream = bundles
        if trainer.get("GPU"):
            kind = "GPU"
            largest = min(1.0, self.max_gpus)
        else:
            kind = "CPU"
            largest = self.max_cpus - stream["CPU"]
        amount = min(2 * trainer[kind], largest)
        if amount <= trainer[kind]:
            return None
        return [{**trainer, kind: amount}, dict(stream)]


def uses_gpus(nodes: Sequence[NodeResources], resources: ResourcesConfig) -> bool:
    """Return True if jobs train on GPUs.

    Example:
        >>> uses_gpus([{"CPU": 8.0, "GPU": 1.0}], ResourcesConfig(gpus_per_trial=0))
        False
    """
    return resources.gpus_per_trial != 0 and any(node.get("GPU") for node in nodes)


class Limit(NamedTuple):
    """Maximum number of concurrent jobs, and the reason for it."""

    max_concurrent: int
    reason: str


def plan_trials(
    nodes: Sequence[NodeResources], resources: ResourcesConfig, num_trials: int, memory: float = 0
) -> tuple[JobResources, str]:
    """Plan the resources per trial. Return them, and a one-line summary.

    Unless --max-concurrent is set, at most a fifth of `num_trials` run at a time (see
    `max_concurrent_trials`). This limit does not apply to confirmation and final test (see `plan_runs`).

    Example:
        >>> _, summary = plan_trials([{"CPU": 2.0}], ResourcesConfig(), 24)
        >>> print(summary)
        2 concurrent trials (all that fit), each with 1 CPU
    """
    return plan_resources(
        nodes,
        resources,
        Limit(num_trials, "all trials"),
        memory,
        default_limit=Limit(
            max_concurrent_trials(num_trials),
            f"a fifth of {num_trials}, so that the search learns from results",
        ),
    )


def max_concurrent_trials(num_trials: int) -> int:
    """Return the maximum number of concurrent trials of a study: a fifth of its trials, but at least one.

    With more, most settings would be sampled before the sampler has results to learn from.

    Example:
        >>> max_concurrent_trials(24), max_concurrent_trials(3)
        (4, 1)
    """
    return max(1, num_trials // 5)


def plan_runs(
    nodes: Sequence[NodeResources],
    resources: ResourcesConfig,
    num_runs: int,
    memory: float = 0,
    *,
    option_noun: str = "trial",
) -> tuple[JobResources, str]:
    """Plan the resources per run of a fixed list of runs. Return them, and a one-line summary.

    As many runs as fit are concurrent, because no run waits for the result of another.

    Args:
        option_noun: Last word of the options for resources: `--cpus-per-<option_noun>`.

    Example:
        >>> _, summary = plan_runs([{"CPU": 64.0, "GPU": 16.0}], ResourcesConfig(), 30)
        >>> print(summary)
        30 concurrent runs (all remaining runs), each with 2 CPUs and 0.5 GPU
    """
    all_runs = Limit(num_runs, "all remaining runs")
    return plan_resources(nodes, resources, all_runs, memory, noun="run", option_noun=option_noun)


def plan_resources(
    nodes: Sequence[NodeResources],
    resources: ResourcesConfig,
    all_jobs: Limit,
    memory: float = 0,
    *,
    default_limit: Limit | None = None,
    noun: str = "trial",
    option_noun: str = "trial",
) -> tuple[JobResources, str]:
    """Plan as many concurrent jobs as fit (up to the smallest limit), each as large as possible.

    Args:
        nodes: Resources of each machine, e.g. [{"CPU": 32.0, "GPU": 4.0}].
        resources: Resources as set by the user.
        all_jobs: Limit by the total number of jobs.
        memory: Estimated memory per job in bytes, 0 if unknown. One job per machine is always allowed,
            because the estimate may be too high. The estimate is ignored if the user sets
            `resources.max_concurrent`.
        default_limit: Limit that applies unless the user sets `resources.max_concurrent`.
        noun: Name of a job in messages.
        option_noun: Last word of the options for resources: `--cpus-per-<option_noun>`.

    Returns:
        The resources, and a one-line summary.

    Raises:
        UserError: a job does not fit on any machine, or requests more than one GPU.
    """
    max_cpus = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    max_gpus = max((node.get("GPU", 0.0) for node in nodes), default=0.0)
    limits = [all_jobs]
    if resources.max_concurrent:
        limits.append(Limit(resources.max_concurrent, "--max-concurrent"))
        memory = 0
    elif default_limit:
        limits.append(default_limit)
    limit = min(limits, key=lambda limit: limit.max_concurrent)

    def capacity(cpus: float, gpus: float) -> int:
        """Return the number of jobs of this size that fit on all machines."""
        return sum(_node_capacity(node, cpus, gpus, memory) for node in nodes)

    # The smallest jobs determine how many are concurrent.
    cpus = resources.cpus_per_trial or 1.0
    gpu_shares = _possible_gpu_shares(resources, max_gpus, noun=noun, option_noun=option_noun)
    smallest_share = gpu_shares[-1]
    num_concurrent = min(limit.max_concurrent, capacity(cpus, smallest_share))
    if not num_concurrent:
        gpu = f" and {smallest_share:g} GPU" if smallest_share else ""
        raise UserError(
            f"A {noun} needs {cpus:g} CPU{gpu} on one machine, but Ray's machines have at most "
            f"{max_cpus:g} CPU and {max_gpus:g} GPU. Lower --cpus-per-{option_noun} or "
            f"--gpus-per-{option_noun}, or wait until more machines have joined (clusters/wait.py)."
        )

    # Jobs grow as long as equally many of them fit.
    gpus = next(share for share in gpu_shares if capacity(cpus, share) >= num_concurrent)
    if resources.cpus_per_trial is None:
        while cpus + 1 <= max_cpus and capacity(cpus + 1, gpus) >= num_concurrent:
            cpus += 1

    planned = JobResources(
        num_concurrent=num_concurrent,
        max_concurrent=limit.max_concurrent,
        cpus=cpus,
        gpus=gpus,
        max_cpus=max_cpus,
        max_gpus=max_gpus,
        memory=memory,
    )
    if num_concurrent == limit.max_concurrent:
        reason = limit.reason
    elif resources.max_concurrent:
        reason = f"all that fit, below --max-concurrent {resources.max_concurrent}"
    else:
        reason = "all that fit"
    return planned, _summarize(planned, reason, noun)


def _summarize(planned: JobResources, reason: str, noun: str) -> str:
    """Return the number of concurrent jobs, the reason for it, and the resources of each job, as one line."""
    jobs = format_count(planned.num_concurrent, f"concurrent {noun}")
    resources = format_count(planned.cpus, "CPU")
    if planned.gpus:
        resources += f" and {format_count(planned.gpus, 'GPU')}"
    return f"{jobs} ({reason}), each with {resources}"


def _possible_gpu_shares(
    resources: ResourcesConfig, max_gpus: float, *, noun: str, option_noun: str
) -> list[float]:
    """Return the numbers of GPUs that a job may have, largest first.

    These are 1, 1/2, 1/3 and 1/4, or only 0 without GPUs, or only the number that the user has set.

    Args:
        resources: Resources as set by the user.
        max_gpus: Largest number of GPUs of a machine.
        noun: Name of a job in messages.
        option_noun: Last word of the options for resources.

    Raises:
        UserError: the user requests more than one GPU per job.
    """
    requested = resources.gpus_per_trial
    if requested != "auto":
        if requested > 1:
            raise UserError(
                f"--gpus-per-{option_noun} must be at most 1, got {requested:g}. A {noun} trains on one GPU."
            )
        return [requested]
    if not max_gpus:
        return [0.0]
    # Rounded down to Ray's resolution of 1/10,000.
    return [math.floor(1e4 / jobs_per_gpu) / 1e4 for jobs_per_gpu in range(1, _MAX_JOBS_PER_GPU + 1)]


def _node_capacity(node: NodeResources, cpus: float, gpus: float, memory: float) -> int:
    """Return the number of jobs that fit on a machine.

    Args:
        node: Resources of the machine.
        cpus: CPUs per job.
        gpus: GPUs per job, at most 1. A job cannot use parts of several GPUs.
        memory: Estimated memory per job in bytes, 0 if unknown.
    """
    capacity = math.floor(node.get("CPU", 0.0) / cpus + _TOLERANCE)
    if gpus:
        jobs_per_gpu = math.floor(1 / gpus + _TOLERANCE)
        num_gpus = math.floor(node.get("GPU", 0.0))
        capacity = min(capacity, jobs_per_gpu * num_gpus)
    if memory and "memory" in node:
        fits_in_memory = math.floor(node["memory"] / memory)
        capacity = min(capacity, max(1, fits_in_memory))
    return capacity
