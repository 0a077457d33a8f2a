"""Search: trials are sampled, trained and scored until the budget is used."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from prometar.errors import PrometarError
from tune.config import StudyConfig
from tune.execution.jobs import WAIT, EpochReport, Job, Wait
from tune.records.folder import StudyFolder
from tune.records.schema import TrialRecord
from tune.stages.jobs import trial_job
from tune.store.trial_store import TrialStore

CHECKPOINTS = "checkpoint*.safetensors"


class SearchJobs:
    """Source of the search's trials. Optuna's storage decides; records follow it.

    Args:
        store: Samples trials and stores their results.
    """

    def __init__(self, config: StudyConfig, folder: StudyFolder, store: TrialStore) -> None:
        self._config, self._folder, self._store = config, folder, store
        self._running: set[int] = set()
        self._started, hours = time.monotonic(), config.resources.max_hours
        self._deadline = None if hours is None else 3600 * hours - store.seconds_searched + self._started
        for trial in store.trials():  # killed between the end of a trial and its record
            if not (folder.trial(trial.number) / "record.json").exists():
                self._record(trial)

    @property
    def out_of_time(self) -> bool:
        """True after `--max-hours`."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def next(self) -> Job | Wait | None:
        while trial := self._store.ask(new=not self.out_of_time):
            try:
                job = trial_job(self._config, self._folder, trial.number, trial.settings)
            except PrometarError as error:  # settings that exclude each other
                self._store.fail(trial.number, str(error))
                self._ended(trial.number)
                continue
            self._running.add(trial.number)
            return job
        return WAIT if self._running else None

    def report(self, job: Job, report: EpochReport, resources: Mapping[str, float]) -> bool:
        continues = self._store.report(job.number, report, resources)
        if not continues:
            self._ended(job.number)
        return continues

    def finish(self, job: Job, failure: str) -> None:
        if failure:
            self._store.fail(job.number, failure)
            self._ended(job.number)
        self._running.discard(job.number)

    def notices(self) -> Iterator[str]:
        """Why fewer trials than asked for were started."""
        counts, trials = self._store.counts, self._config.search.trials
        if self._store.exhausted:
            yield "Search space exhausted: every combination has been tried."
        elif self.out_of_time and counts.done < trials:
            yield "Time limit reached (--max-hours): no new trials will be started."
        if counts.done > trials:
            yield f"--trials {trials} is below the {counts.done} finished trials. All of them count."

    def close(self) -> None:
        """Store how long the search took."""
        self._store.add_seconds(time.monotonic() - self._started)
        self._started = time.monotonic()

    def _ended(self, number: int) -> None:
        if (trial := self._store.trial(number)) is not None:
            self._record(trial)
            self.close()  # a study that is killed keeps its search time

    def _record(self, trial: TrialRecord) -> None:
        """Write a trial's record and delete its checkpoints, which may be large."""
        self._folder.write_trial(trial)
        for checkpoint in Path(self._folder.trial(trial.number)).rglob(CHECKPOINTS):
            checkpoint.unlink(missing_ok=True)
