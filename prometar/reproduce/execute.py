"""Run jobs on Ray: a few workers that are used again, each in a placement group with its stream."""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from prometar.data.streaming.shared_images import shared_images
from prometar.distributed.placement import STRATEGY, ResourcePlan
from prometar.errors import WorkError, last_line
from prometar.io.files import is_refused_write
from prometar.reproduce.grid import Job, Record
from prometar.reproduce.worker import Worker

MAX_DEATHS = 3  # of workers over one job; it goes on from its own checkpoint
ROOM_SECONDS = 300.0  # for the first worker to find a place


@dataclass(frozen=True)
class _Slot:
    """A worker, and the placement group that it and its stream's tasks live in."""

    group: PlacementGroup
    actor: Any

    def close(self) -> None:
        ray.kill(self.actor)
        remove_placement_group(self.group)


class _Crew:
    """Workers, and the job that each is at; None: it has been asked whether it is there."""

    def __init__(self, plan: ResourcePlan) -> None:
        self._plan = plan
        self._at: dict[Any, tuple[_Slot, Job | None]] = {}

    @property
    def working(self) -> bool:
        """Whether any worker is at a job."""
        return any(job for _, job in self._at.values())

    def hire(self) -> None:
        bundles = self._plan.bundles()
        group = placement_group(bundles, strategy=STRATEGY)
        place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
        worker = ray.remote(Worker).options(
            num_cpus=bundles[0]["CPU"], num_gpus=bundles[0].get("GPU", 0), scheduling_strategy=place
        )
        slot = _Slot(group, worker.remote())
        self._at[slot.actor.ready.remote()] = slot, None

    def tell(self, slot: _Slot, job: Job) -> None:
        self._at[slot.actor.run.remote(job)] = slot, job

    def hear(self, room_seconds: float) -> tuple[_Slot, Job | None, Record | RayError | None]:
        """The next worker that has something to say, or (`RayError`) is of no more use."""
        done, _ = ray.wait(list(self._at), timeout=None if self.working else room_seconds)
        if not done:
            raise WorkError(
                f"no worker has started in {room_seconds:.0f} s: Ray has no room for {self._plan.bundles()}"
            )
        slot, job = self._at.pop(done[0])
        try:
            return slot, job, ray.get(done[0])
        except RayError as error:
            if isinstance(error, RayTaskError) and is_refused_write(reason := _last_line(error)):
                slot.close()
                raise WorkError(f"{reason.split(': ', 1)[-1]}; the same command goes on") from None
            return slot, job, error

    def close(self) -> None:
        for slot, _ in self._at.values():
            slot.close()


@shared_images()
def run_jobs(
    jobs: Sequence[Job],
    plan: ResourcePlan,
    *,
    on_record: Callable[[Record], None],
    room_seconds: float = ROOM_SECONDS,
) -> None:
    """Run all jobs; `on_record` hears of each that ends, also of those that failed.

    Raises:
        WorkError: no worker starts, or nothing can be kept: the next runs would not fare better.
    """
    waiting, deaths, crew = deque(jobs), Counter[str](), _Crew(plan)
    try:
        for _ in range(min(plan.max_concurrent, len(jobs))):
            crew.hire()
        while waiting or crew.working:  # a worker that is still to start may be left over
            slot, job, outcome = crew.hear(room_seconds)
            if isinstance(outcome, RayError):
                slot.close()
                again = _after_death(job, outcome, deaths)
                if isinstance(again, Job):
                    waiting.appendleft(again)
                elif again is not None:
                    on_record(again)
                if waiting:
                    crew.hire()
                continue
            if outcome is not None:
                on_record(outcome)
            if job is None:
                del deaths[""]  # workers do start
            if waiting:
                crew.tell(slot, waiting.popleft())
            else:
                slot.close()
    finally:
        crew.close()


def _after_death(job: Job | None, death: RayError, deaths: Counter[str]) -> Job | Record | None:
    """The job to be done again, or the record of its failure; counts the deaths over each.

    One that has raised an error is not done again; its worker may be the worse for it: where a kernel has
    failed, all that a process asks of its GPU later fails too.
    """
    if job is not None and isinstance(death, RayTaskError):
        return job.failed(_last_line(death))
    name = job.entry.name if job else ""
    deaths[name] += 1
    if deaths[name] < MAX_DEATHS:
        return job
    if job is None:
        raise WorkError(f"workers do not start: {_last_line(death)}")
    return job.failed(f"its worker died {MAX_DEATHS} times, at last: {_last_line(death)}")


def _last_line(error: Exception) -> str:
    return last_line(str(error))[:300]
