"""What Ray Tune asks of a batch of jobs, as its searcher and its scheduler: thin hands of the study's memory.

The controller calls the scheduler before the searcher; so with a result each epoch is reported, and stopped
what the pruner prunes, and all of this only ever passes on what the memory decides.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from prometar.distributed.placement import STRATEGY, Room
from prometar.errors import StorageError, UserError, last_line
from prometar.io.files import is_refused_write
from tune.execution.stopping import Stopping
from tune.jobs.files import JobFiles
from tune.jobs.spec import Job
from tune.optimizer.ask_tell import Asked, Memory

MAX_FAILURES = 2  # restarts of a trial in one epoch whose worker died; it goes on from its own checkpoint

_MOST_SAID = 1000  # characters of a reason: URLs are long

_OUT_OF_MEMORY = (
    "torch.OutOfMemoryError", "CUDA out of memory",
    "CUDA error: out of memory",  # not of torch's own memory: a context, a graph
    "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_ALLOC_FAILED",
    "_ALLOCATION_FAILED",  # as cuDNN says it from 9.0 on, of the GPU's memory and of the machine's
    "NVML_SUCCESS == ",  # torch asks who has the memory, which a part of a GPU (MIG) does not tell
    "ray.exceptions.OutOfMemoryError",  # Ray watches over a machine's memory
    "can't allocate memory", "MemoryError",
)  # fmt: skip

_NO_RESULT = "the worker ended without a result"

MakeJob = Callable[[Asked], Job]


class Jobs(ABC):
    """Hands out jobs to Tune's trials, until there are no more, and decides on those trials.

    Each ends with its next result once `stopping` is asked; its state has been kept by then. One that ran out
    of memory is tried again with a larger share of its machine, as far as there is `room`.

    A worker that dies while it is reset for its next trial is counted twice by Tune, which then gives that
    trial up at once. Such a trial has not begun: its jobs are handed out again, as another trial of Tune's.

    Attributes:
        crews: The jobs that each of Tune's trials was given.
        unbegun: Those of Tune's trials whose worker died before they began.
        replaced: Those of them whose jobs are handed out again.
        reasons: What the workers of Tune's trials last died of, if they have told nothing since.
    """

    def __init__(self, stopping: Stopping, room: Room) -> None:
        self._stopping, self._room = stopping, room
        self.crews: dict[str, list[Job]] = {}
        self.unbegun: set[str] = set()
        self.replaced: set[str] = set()
        self.reasons: dict[str, str] = {}
        self._out: set[str] = set()  # Tune's trials that have not ended
        self._again: list[list[Job]] = []
        self._times_again = Counter[str]()  # by the folder of their first job
        self._farthest = Counter[tuple[str, int]]()  # epochs

    def suggest(self, trial_id: str) -> Any:
        """A trial's configuration; None where one may follow later, `Searcher.FINISHED` where none will."""
        if self._stopping.asked:
            return Searcher.FINISHED
        crew = self._again.pop() if self._again else self._fresh()
        if not crew:
            return None if self._out else Searcher.FINISHED  # what is out may come back
        self._out.add(trial_id)
        self.crews[trial_id] = crew
        return {"jobs": crew}

    @abstractmethod
    def _fresh(self) -> list[Job]:
        """What has not been handed out yet; nothing where that is all."""

    def on_result(self, trial: Trial, result: dict) -> str:
        """Whether a trial goes on."""
        self.unbegun.discard(trial.trial_id)
        self.reasons.pop(trial.trial_id, None)
        job, epoch = (trial.trial_id, result.get("member", 0)), result.get("epoch", 0)
        if epoch > self._farthest[job]:  # a new worker tells again what an earlier one has done
            self._farthest[job] = epoch
            trial.run_metadata.num_failures = 0
        return TrialScheduler.STOP if self._stopping.asked else TrialScheduler.CONTINUE

    def on_last_result(self, trial: Trial, result: dict) -> None:  # noqa: B027
        """A trial ends by itself: this result comes here alone."""

    def on_death(self, trial: Trial) -> None:
        """A worker has died: its trial is tried again, given up, or has not begun."""
        if trial.status == trial.PENDING:
            self.unbegun.add(trial.trial_id)
        self.reasons[trial.trial_id] = reason_of(trial)
        if out_of_memory(trial) and trial.status != trial.RUNNING:
            larger = self._room.larger(_place_of(trial).bundles)
            if larger is not None:
                trial.update_resources(PlacementGroupFactory(larger, strategy=STRATEGY))

    def on_end(self, trial_id: str, *, error: bool) -> None:
        """A trial of Tune's has ended: what it has not told by now, it never will."""
        if self._comes_back(trial_id) or (self._stopping.asked and not error):
            return  # for another worker, or for the next command
        self._fail(trial_id, self._reason(trial_id) if error else _NO_RESULT)

    @abstractmethod
    def _fail(self, trial_id: str, reason: str) -> None:
        """Give up those of a trial's jobs that have not ended."""

    def _comes_back(self, trial_id: str) -> bool:
        """Whether the jobs of a trial of Tune's that has ended are handed out again."""
        self._out.discard(trial_id)
        crew = self.crews[trial_id]
        if trial_id not in self.unbegun or self._times_again[crew[0].run_dir] == MAX_FAILURES:
            return False
        self._times_again[crew[0].run_dir] += 1
        self._again.append(crew)
        self.replaced.add(trial_id)
        return True

    def _reason(self, trial_id: str) -> str:
        """Why a trial of Tune's has failed.

        Raises:
            StorageError: nothing can be kept, or the worker's machine has other code: no trial is to blame.
        """
        reason = self.reasons.get(trial_id, _NO_RESULT)
        if is_refused_write(reason):
            raise StorageError(reason.split(": ", 1)[-1])
        return reason


class SearchJobs(Jobs):
    """Asks the memory until `target` trials have begun, interrupted ones first.

    Reports every epoch to the memory and stops what it says.
    """

    def __init__(
        self, memory: Memory, make_job: MakeJob, target: int, stopping: Stopping, room: Room
    ) -> None:
        super().__init__(stopping, room)
        self._memory, self._make_job, self._target = memory, make_job, target

    def _fresh(self) -> list[Job]:
        while True:
            asked = self._memory.next(self._target, fresh=not self._stopping.out_of_time())
            if asked is None:
                return []
            try:
                job = self._make_job(asked)
            except UserError as error:  # settings that a run refuses together
                self._memory.fail(asked.number, str(error))
                continue
            JobFiles(job).allow()
            return [job]

    def _fail(self, trial_id: str, reason: str) -> None:
        for job in self.crews[trial_id]:
            if self._memory.is_running(job.number):
                self._memory.fail(job.number, reason)
        if self._memory.hopeless():  # what waits would only be lost too
            for job in chain.from_iterable(self._again):
                self._memory.fail(job.number, reason)
            self._again.clear()

    def on_result(self, trial: Trial, result: dict) -> str:
        job, ended = self._observe(trial, result)
        if super().on_result(trial, result) == TrialScheduler.STOP:
            return TrialScheduler.STOP
        if not ended:
            return TrialScheduler.CONTINUE
        if not any(self._memory.is_running(each.number) for each in self.crews[trial.trial_id]):
            return TrialScheduler.STOP
        JobFiles(job).stop()
        return TrialScheduler.CONTINUE

    def on_last_result(self, trial: Trial, result: dict) -> None:
        if "epoch" in result:
            self._observe(trial, result)

    def _observe(self, trial: Trial, result: dict) -> tuple[Job, bool]:
        """What a result is of, and whether that is over."""
        job, held = self.crews[trial.trial_id][result.get("member", 0)], _place_of(trial).required_resources
        # Of what was trained together, each trial's seconds are its share already.
        place = {"cpus": held.get("CPU", 0.0), "gpus": held.get("GPU", 0.0)}
        return job, self._memory.observe(job.number, {**result, **place})


class ListedJobs(Jobs):
    """Hands out a fixed list of jobs. `last_result`: Of the job that has ended last."""

    def __init__(self, jobs: list[Job], stopping: Stopping, room: Room) -> None:
        super().__init__(stopping, room)
        self._left = jobs[::-1]
        self.last_result: dict[str, Any] = {}

    def _fresh(self) -> list[Job]:
        return [self._left.pop()] if self._left else []

    def on_last_result(self, trial: Trial, result: dict) -> None:
        self.last_result = result

    def _fail(self, trial_id: str, reason: str) -> None:
        """Nothing to do: what there is of a result lies in the job's folder."""


def _place_of(trial: Trial) -> PlacementGroupFactory:
    place = trial.placement_group_factory
    assert place is not None, "every trial is started with one"
    return place


def out_of_memory(trial: Trial) -> bool:
    """Whether a trial's worker last died because memory ran out, its GPU's or its machine's."""
    failure = _last_failure(trial)
    return any(sign in failure for sign in _OUT_OF_MEMORY)


def reason_of(trial: Trial) -> str:
    """What a trial's worker died of, in one line."""
    return (last_line(_last_failure(trial)) or "the worker died")[:_MOST_SAID]


def _last_failure(trial: Trial) -> str:
    """What Tune has written of it, into a file that it copies to where `Trial.get_error` looks only later."""
    file = Path(trial.error_file) if trial.error_file else None
    text = file.read_text("utf-8", "replace") if file is not None and file.exists() else ""
    return text.split("Failure #")[-1].strip()
