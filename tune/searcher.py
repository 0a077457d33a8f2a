"""Ray Tune's searcher and scheduler, as thin hands of the study's memory.

The controller calls the scheduler before the searcher; so the scheduler reports each epoch and stops what
the pruner prunes, and both only ever pass on what the memory decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from prometar.errors import UserError
from tune.job import Job
from tune.memory import Asked, Memory

MakeJob = Callable[[Asked], Job]


class _StatelessSearcher(Searcher):
    """A searcher of whose state nothing is kept by Ray Tune: storage and folders hold all there is."""

    def __init__(self) -> None:
        super().__init__(metric=None, mode=None)

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        return True

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class StudySearcher(_StatelessSearcher):
    """Asks the memory until `target` trials have begun, interrupted ones first."""

    def __init__(self, memory: Memory, make_job: MakeJob, target: int) -> None:
        super().__init__()
        self._memory, self._make_job, self._target = memory, make_job, target
        self.numbers: dict[str, int] = {}
        self.reasons: dict[str, str] = {}  # what a trial's worker last died of

    def suggest(self, trial_id: str) -> Any:
        while (asked := self._memory.next(self._target)) is not None:
            self.numbers[trial_id] = asked.number
            try:
                return self._make_job(asked).to_dict()
            except UserError as error:  # settings that a run refuses together
                self._memory.fail(asked.number, str(error))
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        number = self.numbers[trial_id]
        if result and not error:
            self._memory.observe(number, result)
        self._memory.fail(number, self.reasons.get(trial_id, "the worker ended without a result"))


class StudyScheduler(FIFOScheduler):
    """Reports every epoch to the memory and stops what it says."""

    def __init__(self, memory: Memory, searcher: StudySearcher) -> None:
        super().__init__()
        self._memory, self._searcher = memory, searcher

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict) -> str:
        stop = self._memory.observe(self._searcher.numbers[trial.trial_id], result)
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        # Also called where the trial is tried again; the searcher hears of those that are not.
        self._searcher.reasons[trial.trial_id] = reason_of(trial)


class ListSearcher(_StatelessSearcher):
    """Hands out a fixed list of jobs."""

    def __init__(self, jobs: list[Job]) -> None:
        super().__init__()
        self._left = list(reversed(jobs))

    def suggest(self, trial_id: str) -> Any:
        return self._left.pop().to_dict() if self._left else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """The result lies in the job's folder."""


def reason_of(trial: Trial) -> str:
    """The last line of what a trial's worker died of."""
    error = trial.get_error()
    lines = str(error or "the worker died").strip().splitlines()
    return lines[-1].strip()[:300]
