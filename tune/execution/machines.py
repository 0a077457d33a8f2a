"""Machines of the Ray cluster: how many jobs they can run, and which of them are avoided."""

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

from tune.execution.ray_cluster import Machine, alive_machines
from tune.execution.resources import JobResources

MAX_DEATHS = 3
"""A machine is avoided after this many of its workers die or raise errors, without an epoch in between."""
_REFRESH_SECONDS = 1.0
"""Age at which the list of machines is renewed."""


class Machines:
    """Machines of the Ray cluster, which may join and leave at any time.

    Args:
        resources: Resources of a job.
        tell: Function that shows a message to the user.
        list_machines: Function that returns the machines that are alive.
        clock: Function that returns the time in seconds.

    Attributes:
        avoided: Reason for each machine that is avoided, by node ID. A machine is avoided until it leaves the
            cluster. If Ray is restarted on it, it joins as a new machine.
    """

    def __init__(
        self,
        resources: JobResources,
        tell: Callable[[str], None],
        *,
        list_machines: Callable[[], Sequence[Machine]] = alive_machines,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resources = resources
        self._tell = tell
        self._list_machines = list_machines
        self._clock = clock
        self._names: dict[str, str] = {}  # by node ID, also of machines that have left
        self._deaths: Counter[str] = Counter()  # by node ID, since the last epoch
        self._listed: Sequence[Machine] = ()
        self._listed_at = -math.inf  # not listed yet
        self.avoided: dict[str, str] = {}

    @property
    def alive(self) -> Sequence[Machine]:
        """Machines that are alive. The list is at most a second old."""
        now = self._clock()
        if now - self._listed_at >= _REFRESH_SECONDS:
            self._listed = self._list_machines()
            self._listed_at = now
            self._names |= {machine.node_id: machine.name for machine in self._listed}
        return self._listed

    def refresh(self) -> None:
        """List the machines again at the next use."""
        self._listed_at = -math.inf

    @property
    def num_concurrent(self) -> int:
        """Number of jobs that may run at a time: as many as fit on the machines that are not avoided.

        It is at least 1, and at most `max_concurrent` of the resources.
        """
        usable = [machine for machine in self.alive if machine.node_id not in self.avoided]
        capacity = sum(self._resources.capacity(machine.resources) for machine in usable)
        return max(1, min(capacity, self._resources.max_concurrent))

    def name(self, node_id: str) -> str:
        """Return the name of a machine for messages."""
        return self._names.get(node_id, "a machine that has left")

    def is_alive(self, node_id: str) -> bool:
        """Return True if a machine is part of the cluster."""
        return any(machine.node_id == node_id for machine in self.alive)

    def usable_node_ids(
        self, bundles: Sequence[Mapping[str, float]], *, except_for: Collection[str] = ()
    ) -> list[str]:
        """Return the node IDs of the machines on which a job with these bundles may run.

        Args:
            except_for: Node IDs of further machines on which the job must not run.
        """
        excluded = {*self.avoided, *except_for}
        fitting = [machine for machine in self.alive if machine.fits(bundles)]
        return [machine.node_id for machine in fitting if machine.node_id not in excluded]

    def avoid(self, node_id: str, reason: str) -> None:
        """Start no more jobs on a machine, and tell the user why."""
        if node_id not in self.avoided:
            self.avoided[node_id] = reason
            self._tell(f"Avoiding {self.name(node_id)}: {reason}")

    def record_death(self, node_id: str, reason: str) -> None:
        """Record that a worker died or raised an error on a machine.

        Avoid the machine after `MAX_DEATHS` such events in a row, if another usable machine is left.
        """
        self._deaths[node_id] += 1
        unusable = {node_id, *self.avoided}
        other_usable = [machine for machine in self.alive if machine.node_id not in unusable]
        if self._deaths[node_id] >= MAX_DEATHS and other_usable:
            self.avoid(node_id, f"{MAX_DEATHS} workers died in a row ({reason})")

    def record_epoch(self, node_id: str) -> None:
        """Record that a worker completed an epoch on a machine."""
        self._deaths.pop(node_id, None)

    @property
    def all_avoided_reason(self) -> str:
        """Reasons why no machine can run a job, as one line. They name the avoided machines.

        "" if a machine can run a job. Also "" if all machines are too small, because a larger one may join.
        """
        fitting = [machine for machine in self.alive if machine.fits(self._resources.bundles())]
        if not fitting:
            return ""
        if any(machine.node_id not in self.avoided for machine in fitting):
            return ""
        reasons = [(machine.name, self.avoided[machine.node_id]) for machine in fitting]
        return describe_reasons(reasons)


def describe_reasons(reasons: Sequence[tuple[str, str]]) -> str:
    """Return machines with their reasons as one line. Machines with the same reason are listed together.

    Example:
        >>> describe_reasons([("a", "no data."), ("b", "no data."), ("c", "no GPU")])
        'no data (on a, b); no GPU (on c)'
    """
    names_by_reason: dict[str, list[str]] = {}
    for name, reason in reasons:
        names = names_by_reason.setdefault(reason.rstrip("."), [])
        if name not in names:
            names.append(name)
    return "; ".join(f"{reason} (on {', '.join(names)})" for reason, names in names_by_reason.items())
