"""Resources of trials: how many run at once, and the CPUs and GPUs of each."""

import math
from collections.abc import Sequence

from prometar.distributed.placement import Node, ResourcePlan, Shares, plan_resources
from prometar.errors import UserError
from tune.config import ResourcesConfig

PART = 5
"""At most this part of the budget runs at once: a sampler cannot learn from trials that are running."""
_MOST_PER_GPU = 4
"""Trials on one GPU, unless --gpus-per-trial says otherwise. More compete for its memory."""


def study_plan(
    nodes: Sequence[Node], resources: ResourcesConfig, trials: int, memory: float = 0
) -> tuple[ResourcePlan, str]:
    """Plan the resources per trial, and return the reason as one line.

    At most a fifth of the budget runs at once. The trials then get larger shares of the machines.

    Args:
        nodes: Resources of each machine, e.g. [{"CPU": 32.0, "GPU": 4.0}].
        trials: Budget.
        memory: Bytes of a machine's memory per trial; 0: unknown.

    Raises:
        UserError: a trial does not fit on any machine.

    Example:
        >>> print(study_plan([{"CPU": 2.0}], ResourcesConfig(), 24)[1])
        2 concurrent trials (all that fit), each with 1 CPU
    """
    smallest = _shares(nodes, resources)
    plan = plan_resources(nodes, smallest, memory=memory)  # raises if nothing fits
    fits, wanted = plan.max_concurrent, resources.max_concurrent or max(1, trials // PART)
    number = min(fits, wanted)

    def holds(cpus: float, gpus: float) -> bool:
        return _capacity(nodes, Shares(None, cpus, gpus), memory) >= number

    cpus, gpus = plan.cpus_per_trial, plan.gpus_per_trial
    if resources.gpus_per_trial == "auto" and gpus:
        gpus = next(share for count in range(1, _MOST_PER_GPU + 1) if holds(cpus, share := _part(count)))
    if resources.cpus_per_trial is None:
        largest = math.floor(max(node.get("CPU", 0.0) for node in nodes))
        cpus = next((float(each) for each in range(largest, 1, -1) if holds(each, gpus)), cpus)
    plan = plan_resources(nodes, Shares(number, cpus, gpus), memory=memory)
    if resources.max_concurrent:
        reason = "--max-concurrent" if number == wanted else f"all that fit of --max-concurrent {wanted}"
    elif number == wanted:
        reason = f"a fifth of {trials}, so that the search learns from results"
    else:
        reason = "all that fit"
    return plan, f"{_counted(number, 'concurrent trial')} ({reason}){plan.note}, each with {_described(plan)}"


def _shares(nodes: Sequence[Node], resources: ResourcesConfig) -> Shares:
    """Smallest shares that a trial may get."""
    gpus = resources.gpus_per_trial
    if gpus == "auto":
        gpus = _part(_MOST_PER_GPU) if any(node.get("GPU") for node in nodes) else 0.0
    return Shares(None, resources.cpus_per_trial or 1.0, gpus)


def _capacity(nodes: Sequence[Node], shares: Shares, memory: float) -> int:
    """Return how many trials with these shares the machines hold."""
    try:
        return plan_resources(nodes, shares, memory=memory).max_concurrent
    except UserError:  # not even one
        return 0


def _part(count: int) -> float:
    """1 / count, rounded down: Ray counts in ten-thousandths."""
    return math.floor(1e4 / count) / 1e4


def _counted(number: float, noun: str) -> str:
    return f"{round(number, 2):g} {noun}{'s' if number > 1 else ''}"


def _described(plan: ResourcePlan) -> str:
    gpus = f" and {_counted(plan.gpus_per_trial, 'GPU')}" if plan.gpus_per_trial else ""
    return _counted(plan.cpus_per_trial, "CPU") + gpus
