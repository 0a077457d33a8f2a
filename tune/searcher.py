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
from tune.crew import allow, stop
from tune.job import Job, pack
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
    """Asks the memory until `target` trials have begun, interrupted ones first; `lockstep` a worker."""

    def __init__(self, memory: Memory, make_job: MakeJob, target: int, lockstep: int = 1) -> None:
        super().__init__()
        self._memory, self._make_job, self._target, self._lockstep = memory, make_job, target, lockstep
        self.crews: dict[str, dict[int, Job]] = {}  # jobs by the study's number, by Tune's trial
        self.reasons: dict[str, str] = {}  # what a trial's worker last died of

    def suggest(self, trial_id: str) -> Any:
        crew: dict[int, Job] = {}
        while len(crew) < self._lockstep and (asked := self._memory.next(self._target)) is not None:
            try:
                crew[asked.number] = self._make_job(asked)
            except UserError as error:  # settings that a run refuses together
                self._memory.fail(asked.number, str(error))
        if not crew:
            return Searcher.FINISHED
        for job in crew.values():
            allow(job)
        self.crews[trial_id] = crew
        return pack(list(crew.values()))

    def numbers(self, trial_id: str) -> list[int]:
        """The study's numbers of what one worker trains, in the order of its jobs."""
        return list(self.crews[trial_id])

    def number(self, trial_id: str, result: dict) -> int:
        """The study's number of the trial that a result tells of."""
        return self.numbers(trial_id)[result.get("member", 0)]

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        if result and not error:
            self._memory.observe(self.number(trial_id, result), result)
        for number in self.numbers(trial_id):
            self._memory.fail(number, self.reasons.get(trial_id, "the worker ended without a result"))


class StudyScheduler(FIFOScheduler):
    """Reports every epoch to the memory and stops what it says."""

    def __init__(self, memory: Memory, searcher: StudySearcher) -> None:
        super().__init__()
        self._memory, self._searcher = memory, searcher

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict) -> str:
        crew = self._searcher.crews[trial.trial_id]
        number = self._searcher.number(trial.trial_id, result)
        if not self._memory.observe(number, result):
            return TrialScheduler.CONTINUE
        if not any(map(self._memory.is_running, crew)):
            return TrialScheduler.STOP
        stop(crew[number])
        return TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        # Also called where the trial is tried again; the searcher hears of those that are not.
        self._searcher.reasons[trial.trial_id] = reason_of(trial)


class ListSearcher(_StatelessSearcher):
    """Hands out a fixed list of jobs."""

    def __init__(self, jobs: list[Job]) -> None:
        super().__init__()
        self._left = list(reversed(jobs))

    def suggest(self, trial_id: str) -> Any:
        return pack([self._left.pop()]) if self._left else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """The result lies in the job's folder."""


def reason_of(trial: Trial) -> str:
    """The last line of what a trial's worker died of."""
    error = trial.get_error()
    lines = str(error or "the worker died").strip().splitlines()
    return lines[-1].strip()[:300]
