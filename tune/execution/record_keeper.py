"""Writes each trial's record as it ends."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ray.tune import Callback

from prometar.errors import UserError
from tune.execution.stopping import Stopping
from tune.jobs.files import JobFiles
from tune.jobs.spec import Job
from tune.optimizer.ask_tell import Asked, Memory
from tune.results.schema import TRIAL, TrialRecord
from tune.results.writer import StudyFolder


class RecordKeeper(Callback):
    """Writes a trial's record when it ends, and how long the search has taken, also for a killed study."""

    def __init__(
        self, folder: StudyFolder, memory: Memory, stopping: Stopping, job_of: Callable[[Asked], Job]
    ) -> None:
        self._folder, self._memory, self._stopping, self._job_of = folder, memory, stopping, job_of
        before = memory.ended()
        for trial in before:
            if not folder.record(trial.number).exists():  # killed between a trial's end and its record
                self._write(trial)
        self._num_written = len(before)

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        self.catch_up()

    def catch_up(self) -> None:
        """Write the records of the trials that have ended since."""
        fresh = self._memory.ended(self._num_written)
        for trial in fresh:
            self._write(trial)
            self._num_written += 1
        if fresh:
            self.clock()

    def clock(self) -> None:
        """Keep how long the search has taken."""
        self._memory.searched(self._stopping.elapsed)

    def _write(self, trial: TrialRecord) -> None:
        TRIAL.write(self._folder.record(trial.number), trial)
        # A trial that has been told needs no state any more, and states may be large.
        with suppress(UserError):  # of settings that no run takes together
            JobFiles(self._job_of(Asked(trial.number, dict(trial.settings)))).drop_states()
