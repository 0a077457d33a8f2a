"""Resource plan: what each run gets, and how many run at once.

A run is a placement group of two bundles on one machine: its trainer, and the tasks of its stream. A stream
thus always has CPUs of its own. Without them Ray Data waits for ever, silently.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prometar.errors import UserError

Node = Mapping[str, float]
"""Resources of a machine as Ray reports them, e.g. {"CPU": 8.0, "GPU": 1.0, "memory": 2e10}."""

STRATEGY = "STRICT_PACK"
"""Placement strategy of a run's bundles: one machine."""


@dataclass(frozen=True)
class ResourcePlan:
    """Concurrent runs and the resources of each.

    Args:
        cpus_per_trial: Of trainer and stream together.
        memory: Bytes of a machine's memory per run; 0: unknown.
        note: Effect of the machines' memory on the plan; empty: none.
        noun: Name of a run.
    """

    max_concurrent: int
    cpus_per_trial: float
    gpus_per_trial: float
    memory: float = 0
    note: str = ""
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
        """Return the run's placement group: trainer, then stream."""
        trainer = {"CPU": self.cpus_per_trial - self.stream_cpus}
        if self.gpus_per_trial:
            trainer["GPU"] = self.gpus_per_trial
        return [trainer, {"CPU": self.stream_cpus}]

    def describe(self, nodes: Sequence[Node]) -> str:
        """Return the plan as one line."""
        gpus = f" and {self.gpus_per_trial:g} GPU" if self.gpus_per_trial else ""
        memory = f", about {self.memory / 2**30:.1f} GiB of memory{self.note}" if self.memory else ""
        return (
            f"{at_a_time(self.max_concurrent, self.noun)}, each with {self.cpus_per_trial:g} CPU (half for "
            f"its stream){gpus}{memory}, of {_total(nodes, 'CPU'):g} CPUs and {_total(nodes, 'GPU'):g} GPUs "
            f"on {len(nodes)} machine{'s' * (len(nodes) != 1)}"
        )


def at_a_time(number: int, noun: str) -> str:
    """
    Example:
        >>> at_a_time(1, "trial"), at_a_time(2, "run")
        ('one trial at a time', '2 runs at a time')
    """
    return f"{f'one {noun}' if number == 1 else f'{number} {noun}s'} at a time"


@dataclass(frozen=True)
class Room:
    """CPUs and GPUs of the largest machine: the most that one run can get."""

    cpus: float
    gpus: float

    @staticmethod
    def of(nodes: Sequence[Node]) -> "Room":
        return Room(_largest(nodes, "CPU"), _largest(nodes, "GPU"))

    def larger(self, bundles: Sequence[Mapping[str, float]]) -> list[dict[str, float]] | None:
        """Return bundles with a trainer of twice the size, or None if the machine has no more.

        Results do not change: threads and stream stay as they are. The memory that a run may use grows with
        its share of the GPU, or of the machine's CPUs.

        Example:
            >>> Room(cpus=8, gpus=1).larger([{"CPU": 0.5, "GPU": 0.25}, {"CPU": 0.5}])
            [{'CPU': 0.5, 'GPU': 0.5}, {'CPU': 0.5}]
        """
        trainer, *others = (dict(bundle) for bundle in bundles)
        kind = "GPU" if trainer.get("GPU") else "CPU"
        most = min(1.0, self.gpus) if kind == "GPU" else self.cpus - sum(b.get("CPU", 0.0) for b in others)
        share = min(2 * trainer[kind], most)
        return [{**trainer, kind: share}, *others] if share > trainer[kind] else None


@dataclass(frozen=True)
class Shares:
    """Requested resources of runs.

    Args:
        max_concurrent: Maximum number of concurrent runs; None: as many as fit.
        cpus: CPUs of trainer and stream together (default 1).
        gpus: A share of a GPU, or a whole number; None: one GPU per run if there are any.
        noun: Name of a run in messages and options (`--cpus-per-<noun>`).
    Raises:
        UserError: a number out of range.
    """

    max_concurrent: int | None = None
    cpus: float = 1.0
    gpus: float | None = None
    noun: str = "trial"

    def __post_init__(self) -> None:
        gpus = self.gpus or 0
        if not 0.1 <= self.cpus < math.inf:
            raise UserError(f"--cpus-per-{self.noun} must be at least 0.1, got {self.cpus:g}.")
        if self.max_concurrent is not None and self.max_concurrent < 1:
            raise UserError(f"--max-concurrent must be at least 1, got {self.max_concurrent}.")
        if not (gpus == 0 or 0.01 <= gpus <= 1 or (1 < gpus < math.inf and gpus == round(gpus))):
            raise UserError(f"--gpus-per-{self.noun} must be 0, 0.01 to 1, or a whole number, got {gpus:g}.")

    def on_gpu(self, nodes: Sequence[Node]) -> bool:
        """Return True if runs get GPUs of these machines."""
        return bool(_total(nodes, "GPU") if self.gpus is None else self.gpus)


def plan_resources(nodes: Sequence[Node], shares: Shares = Shares(), *, memory: float = 0) -> ResourcePlan:
    """Plan the concurrent runs on machines with these resources, e.g. [{"CPU": 2.0, "GPU": 1.0}].

    Args:
        memory: Estimated bytes of a machine's memory per run; 0: unknown. Being an estimate, it never
            prevents one run per machine, nor a requested `max_concurrent`.
    Raises:
        UserError: no machine has the resources of one run.

    Example:
        >>> plan_resources([{"CPU": 3.0}, {"CPU": 3.0}], Shares(cpus=2.0)).max_concurrent
        2
    """
    most, cpus, noun = shares.max_concurrent, shares.cpus, shares.noun
    gpus = float(shares.on_gpu(nodes)) if shares.gpus is None else shares.gpus
    counts = [_fit(node, cpus, gpus) for node in nodes]
    fits = sum(counts)
    if not fits:
        gpu = f" and {gpus:g} GPU" if gpus else ""
        has = f"{_largest(nodes, 'CPU'):g} CPU" + (f" and {_largest(nodes, 'GPU'):g} GPU" if gpus else "")
        raise UserError(
            f"A {noun} needs {cpus:g} CPU{gpu} on one machine, Ray's machines have at most {has}. Lower "
            f"--cpus-per-{noun} or --gpus-per-{noun}, or wait until workers have joined (clusters/wait.py)."
        )
    held = sum(_in_memory(node, memory, most=count) for node, count in zip(nodes, counts, strict=True))
    at_once = min(fits, most or held or sum(map(bool, counts)))
    note = ""
    if at_once > held:
        note = f" (their machines have memory for {held}: more may be killed)"
    elif held < fits and not most:
        note = " (limited by memory)"
    return ResourcePlan(at_once, cpus, gpus, memory, note, noun)


def _total(nodes: Sequence[Node], kind: str) -> float:
    return sum(node.get(kind, 0.0) for node in nodes)


def _largest(nodes: Sequence[Node], kind: str) -> float:
    return max((node.get(kind, 0.0) for node in nodes), default=0.0)


def _in_memory(node: Node, memory: float, *, most: int) -> int:
    """Return how many of at most `most` runs the machine's memory holds."""
    return min(most, math.floor(node["memory"] / memory)) if memory and "memory" in node else most


def _fit(node: Node, cpus: float, gpus: float) -> int:
    """Return how many runs fit on a machine. A share lies on one GPU, so 0.4 of one fits twice on each."""
    by_cpu = math.floor(node.get("CPU", 0.0) / cpus + 1e-9)
    if not gpus:
        return by_cpu
    num = node.get("GPU", 0.0)
    by_gpu = math.floor(1 / gpus + 1e-9) * math.floor(num) if gpus < 1 else math.floor(num / gpus + 1e-9)
    return min(by_cpu, by_gpu)
