"""The resource plan: what a run gets, how many run at once, and a refusal of what cannot run.

A run is a placement group of two bundles on one machine: its trainer, and the tasks of its stream. So a
stream always has a place to run, beside its trainer, even when runs hold every CPU; without it Ray Data waits
for ever, in silence.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prometar.errors import UserError
from prometar.words import counted

Node = Mapping[str, float]
"""A machine's resources as Ray tells them, e.g. {"CPU": 8.0, "GPU": 1.0, "object_store_memory": 2e9}."""

STRATEGY = "STRICT_PACK"
"""How Ray places a run's bundles: on one machine."""


@dataclass(frozen=True)
class ResourcePlan:
    """Runs at a time, and what each gets.

    Args:
        cpus_per_trial: Trainer and stream together.
        memory: Bytes of a machine's memory that each takes; 0: not known.
        note: What the machines' memory says to it; "" where there is enough.
        noun: What a run is called.
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
        """The run's placement group: trainer, then stream."""
        trainer = {"CPU": self.cpus_per_trial - self.stream_cpus}
        if self.gpus_per_trial:
            trainer["GPU"] = self.gpus_per_trial
        return [trainer, {"CPU": self.stream_cpus}]

    def describe(self, nodes: Sequence[Node]) -> str:
        """The plan as one line."""
        gpus = f" and {self.gpus_per_trial:g} GPU" if self.gpus_per_trial else ""
        store = total(nodes, "object_store_memory") / 2**30
        memory = f", about {self.memory / 2**30:.1f} GiB of memory{self.note}" if self.memory else ""
        return (
            f"{at_a_time(self.max_concurrent, self.noun)}, each with {self.cpus_per_trial:g} CPU (half for "
            f"its stream){gpus}{memory}, of {total(nodes, 'CPU'):g} CPUs and "
            f"{total(nodes, 'GPU'):g} GPUs on {counted(len(nodes), 'machine')}, object store {store:.1f} GiB"
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
    """The most that one run can be given: the CPUs and GPUs of the largest machine."""

    cpus: float
    gpus: float

    @staticmethod
    def of(nodes: Sequence[Node]) -> "Room":
        """The room that these machines have."""
        return Room(_largest(nodes, "CPU"), _largest(nodes, "GPU"))

    def larger(self, bundles: Sequence[Mapping[str, float]]) -> list[dict[str, float]] | None:
        """Bundles of twice the share, as far as there is room; None where there is none.

        A run's figures do not depend on its share: its threads and its stream's tasks stay as they are. A
        GPU's memory goes with the share of the GPU, a machine's with that of its CPUs.

        Example:
            >>> Room(cpus=8, gpus=1).larger([{"CPU": 0.5, "GPU": 0.25}, {"CPU": 0.5}])
            [{'CPU': 0.5, 'GPU': 0.5}, {'CPU': 0.5}]
        """
        trainer, *others = (dict(bundle) for bundle in bundles)
        kind = "GPU" if trainer.get("GPU") else "CPU"
        most = min(1.0, self.gpus) if kind == "GPU" else self.cpus - sum(b.get("CPU", 0.0) for b in others)
        share = min(2 * trainer[kind], most)
        if share <= trainer[kind]:
            return None
        return [{**trainer, kind: share}, *others]


@dataclass(frozen=True)
class Shares:
    """What runs are to get, as far as it can be told without any machine.

    Args:
        max_concurrent: Runs at a time at most; None: as many as fit.
        cpus: For trainer and stream together (default 1).
        gpus: A share of a GPU, or a whole number of them; None: one where there are GPUs, else 0.
        noun: What a run is called in messages and options (`--cpus-per-<noun>`).
    Raises:
        UserError: a number that makes no sense.
    """

    max_concurrent: int | None = None
    cpus: float = 1.0
    gpus: float | None = None
    noun: str = "trial"

    def __post_init__(self) -> None:
        most, gpus, noun = self.max_concurrent, self.gpus, self.noun
        if not 0.1 <= self.cpus < math.inf:
            raise UserError(f"--cpus-per-{noun} must be at least 0.1, found {self.cpus:g}")
        if most is not None and most < 1:
            raise UserError(f"--max-concurrent must be at least 1, found {most}")
        if gpus and not 0.01 <= gpus < math.inf:
            raise UserError(f"--gpus-per-{noun} must be 0 or at least 0.01, found {gpus:g}")
        if gpus and gpus > 1 and gpus != round(gpus):
            raise UserError(f"--gpus-per-{noun} above 1 must be a whole number, found {gpus:g}")

    def on_gpu(self, nodes: Sequence[Node]) -> bool:
        """Whether runs are placed on GPUs of these machines."""
        return bool(total(nodes, "GPU") if self.gpus is None else self.gpus)


def plan_resources(nodes: Sequence[Node], shares: Shares = Shares(), *, memory: float = 0) -> ResourcePlan:
    """A plan that fits machines' resources ([{"CPU": 2.0, "GPU": 1.0}]).

    Args:
        memory: Bytes that a run takes of its machine's memory; 0: not known. It is counted, not measured: so
            `max_concurrent` goes before it, and a machine for whose memory one is too large gets one if
            no other has room.
    Raises:
        UserError: not even one run fits on any machine, with the figures.

    Example:
        >>> plan_resources([{"CPU": 3.0}, {"CPU": 3.0}], Shares(cpus=2.0)).max_concurrent
        2
    """
    most, cpus, noun = shares.max_concurrent, shares.cpus, shares.noun
    gpus = float(shares.on_gpu(nodes)) if shares.gpus is None else shares.gpus
    if not total(nodes, "CPU"):
        raise UserError(
            f"Ray has no CPUs for a {noun} yet: wait until a worker has joined it (clusters/wait.py does)"
        )
    _require("CPU", cpus, nodes, noun)
    _require("GPU", gpus, nodes, noun)
    counts = [_fit(node, cpus, gpus) for node in nodes]
    fits = sum(counts)
    if not fits:
        raise UserError(
            f"no machine has both the {cpus:g} CPU and the {gpus:g} GPU that a {noun} asks for: "
            f"lower --cpus-per-{noun} or --gpus-per-{noun}"
        )
    held = sum(_hold(node, memory, most=count) for node, count in zip(nodes, counts, strict=True))
    at_once = min(fits, most or held or sum(map(bool, counts)))
    note = ""
    if at_once > held:
        note = f" (their machines have memory for {held}: more may be killed)"
    elif held < fits and not most:
        note = " (their machines have memory for no more)"
    return ResourcePlan(at_once, cpus, gpus, memory, note, noun)


def total(nodes: Sequence[Node], kind: str) -> float:
    """All machines' resources of a kind."""
    return sum(node.get(kind, 0.0) for node in nodes)


def _largest(nodes: Sequence[Node], kind: str) -> float:
    """The most that one machine has of a kind."""
    return max((node.get(kind, 0.0) for node in nodes), default=0.0)


def _require(kind: str, each: float, nodes: Sequence[Node], noun: str) -> None:
    most = _largest(nodes, kind)
    if each > most + 1e-9:
        option = f"--{kind.lower()}s-per-{noun}"
        where = " on its largest machine" if len(nodes) > 1 else ""
        raise UserError(f"a {noun} asks for {each:g} {kind}, Ray has {most:g}{where}: lower {option}")


def _hold(node: Node, memory: float, *, most: int) -> int:
    """How many runs a machine's memory holds, of `most`; all of them where it is not known."""
    return min(most, math.floor(node["memory"] / memory)) if memory and "memory" in node else most


def _fit(node: Node, cpus: float, gpus: float) -> int:
    """How many runs one machine holds; a share lies on one GPU, so 0.4 of one fits twice on each."""
    by_cpu = math.floor(node.get("CPU", 0.0) / cpus + 1e-9)
    if not gpus:
        return by_cpu
    num = node.get("GPU", 0.0)
    by_gpu = math.floor(1 / gpus + 1e-9) * math.floor(num) if gpus < 1 else math.floor(num / gpus + 1e-9)
    return min(by_cpu, by_gpu)
