"""A study's course: batches of jobs, each made of what the ones before it have led to.

Ray Tune runs all of them in one go: workers that have loaded a backbone go on with the next batch.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partialmethod
from typing import Any, Generic, TypeVar

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from prometar.errors import WorkError
from tune.execution.jobs import Jobs
from tune.execution.stopping import Stopping

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """Jobs that may run side by side, and who is told of them."""

    jobs: Jobs
    callbacks: Sequence[Callback] = ()


Course = Generator[Batch, None, T]
"""Yields a batch, and goes on when that has ended. Returns what all of it has led to."""


class Running(Generic[T]):
    """A course that goes on.

    Attributes:
        batch: The one that is running; None before the first and after the last.
        owners: The batch of each of Tune's trials: one that Tune tries again may outlive its batch.
        problem: What the course has raised, whole: Tune would keep its text alone.
        over: Whether the course has come to its end, with a `result`.
    """

    result: T

    def __init__(self, course: Course[T]) -> None:
        self._course = course
        self.batch: Batch | None = None
        self.owners: dict[str, Batch] = {}
        self.problem: Exception | None = None
        self.over = False

    def begin_next(self) -> None:
        """Begin the next batch, if there is one."""
        self.batch = None
        try:
            self.batch = next(self._course)
        except StopIteration as end:
            self.result, self.over = end.value, True
        except Exception as error:
            self.problem = error


class _Unpickled:
    """Pickled as nothing: terminals and connections cannot be, and a study's state lies elsewhere."""

    def __getstate__(self) -> dict[str, object]:
        return {}


class RelayedSearcher(_Unpickled, Searcher):
    """Hands out what the running batch does; where that has ended, the next one begins."""

    def __init__(self, running: Running[Any], stopping: Stopping) -> None:
        super().__init__(metric=None, mode=None)
        self._running, self._stopping = running, stopping

    def suggest(self, trial_id: str) -> Any:
        while self._running.batch is not None:
            batch = self._running.batch
            found = batch.jobs.suggest(trial_id)
            if found is None or (found == Searcher.FINISHED and self._stopping.asked):
                return found
            if found != Searcher.FINISHED:
                self._running.owners[trial_id] = batch
                return found
            self._running.begin_next()
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        self._running.owners[trial_id].jobs.on_end(trial_id, error=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: storage and folders hold all there is."""


class RelayedScheduler(_Unpickled, FIFOScheduler):
    """Decides on a trial as its batch does; the first one that waits begins."""

    def __init__(self, running: Running[Any]) -> None:
        super().__init__()
        self._running = running
        self._order: dict[str, int] = {}

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self._order[trial.trial_id] = len(self._order)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        # Tune's own looks through all there ever were, each time.
        waiting = [trial for trial in tune_controller.get_live_trials() if trial.status == Trial.PENDING]
        return min(waiting, key=lambda trial: self._order[trial.trial_id], default=None)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict) -> str:
        return self._of(trial).on_result(trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self._of(trial).on_death(trial)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict) -> None:
        self._of(trial).on_last_result(trial, result)

    def _of(self, trial: Trial) -> Jobs:
        return self._running.owners[trial.trial_id].jobs


class RelayedCallback(_Unpickled, Callback):
    """Tells those whom a trial's batch tells; of what concerns no trial, those of the running batch."""

    def __init__(self, running: Running[Any], stopping: Stopping) -> None:
        self._running, self._stopping = running, stopping

    def on_step_begin(self, iteration: int, trials: list, **info: Any) -> None:
        """
        Raises:
            WorkError: nothing runs any more.
        """
        if self._stopping.died:
            raise WorkError(self._stopping.died)

    def _tell(self, event: str, **info: Any) -> None:
        batch = self._running.owners[info["trial"].trial_id] if "trial" in info else self._running.batch
        for callback in batch.callbacks if batch else ():
            getattr(callback, event)(**info)

    on_step_end = partialmethod(_tell, "on_step_end")
    on_trial_start = partialmethod(_tell, "on_trial_start")
    on_trial_result = partialmethod(_tell, "on_trial_result")
    on_trial_complete = partialmethod(_tell, "on_trial_complete")
    on_trial_error = partialmethod(_tell, "on_trial_error")
