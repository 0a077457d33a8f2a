"""Search: trials are sampled, trained and scored until the budget is used."""

import time
from collections.abc import Iterator

from prometar.errors import PrometarError
from tune.config import StudyConfig
from tune.execution.jobs import Job
from tune.records.folder import StudyFolder
from tune.records.schema import EpochReport, TrialRecord
from tune.stages.jobs import search_job
from tune.store.trial_store import TrialStore

CHECKPOINTS = "checkpoint*.safetensors"


class SearchJobs(Iterator[Job]):
    """Jobs of the search, and their observer. Optuna's storage decides, records follow it.

    Args:
        store: Samples trials and stores their results.
    """

    def __init__(self, config: StudyConfig, folder: StudyFolder, store: TrialStore) -> None:
        self._config, self._folder, self._store = config, folder, store
        self._started, hours = time.monotonic(), config.resources.max_hours
        self._deadline = None if hours is None else 3600 * hours - store.seconds_searched + self._started
        for trial in store.finished:  # killed between the end of a trial and its record
            if not (folder.trial(trial.number) / "record.json").exists():
                self._record(trial)

    @property
    def out_of_time(self) -> bool:
        """True after `--max-hours`."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def __next__(self) -> Job:
        while trial := self._store.ask(new=not self.out_of_time):
            try:
                return search_job(self._config, self._folder, trial.number, trial.params)
            except PrometarError as error:  # settings that exclude each other
                self._fail(trial.number, str(error))
        raise StopIteration

    def started(self, job: Job) -> None:
        """The storage knows it already."""

    def reported(self, job: Job, report: EpochReport) -> bool:
        continues = self._store.report(job.number, report)
        if not continues:
            self._ended(job.number)
        return continues

    def finished(self, job: Job, failure: str) -> None:
        if failure:
            self._fail(job.number, failure)

    def notices(self) -> Iterator[str]:
        """Why fewer trials than asked for were started."""
        done, trials = len(self._store.finished), self._config.search.trials
        if self._store.exhausted:
            yield "Search space exhausted: every combination has been tried."
        elif self.out_of_time and done < trials:
            yield "Time limit reached (--max-hours): no new trials will be started."
        if done > trials:
            yield f"--trials {trials} is below the {done} finished trials. All of them count."

    def close(self) -> None:
        """Store how long the search took."""
        now = time.monotonic()
        self._store.add_seconds(now - self._started)
        self._started = now

    def _fail(self, number: int, reason: str) -> None:
        self._store.fail(number, reason)
        self._ended(number)

    def _ended(self, number: int) -> None:
        if (trial := self._store.trial(number)) is not None:
            self._record(trial)
            self.close()  # a study that is killed keeps its search time

    def _record(self, trial: TrialRecord) -> None:
        """Write a trial's record and delete its checkpoints, which may be large."""
        self._folder.write(trial)
        for checkpoint in self._folder.trial(trial.number).rglob(CHECKPOINTS):
            checkpoint.unlink(missing_ok=True)
