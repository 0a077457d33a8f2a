"""Search: trials are sampled, trained and scored until --trials, --max-hours or a budget is reached."""

import time
from collections.abc import Callable, Iterator

from prometar.errors import PrometarError
from tune.config import StudyConfig
from tune.execution.job import Job
from tune.records.folder import StudyFolder
from tune.records.schema import EpochReport, TrialRecord
from tune.space.ranges import Settings
from tune.stages.study_jobs import trial_epochs, trial_job
from tune.store.trial_store import TrialStore


class SearchJobs(Iterator[Job | None]):
    """Iterator over the jobs of the search. It is also an `Observer`, which stores the jobs' results.

    The trial store is the source of truth. Each trial's record.json is written from it.

    A budget limits the steps or the seconds of training. In steps, a running trial counts with all of its
    epochs. If the running trials use up the budget, the iterator yields None, so that it is asked again after
    the next result. One of these trials may be pruned, and free a part of the budget.

    Args:
        config: Configuration of the study.
        folder: Folder of the study.
        store: Store of the trials.
        count_steps_per_epoch: Function that returns the training steps per epoch of a trial with some
            settings. Only called if there is a budget in steps.
    """

    def __init__(
        self,
        config: StudyConfig,
        folder: StudyFolder,
        store: TrialStore,
        count_steps_per_epoch: Callable[[Settings], int],
    ) -> None:
        self._config = config
        self._folder = folder
        self._store = store
        self._count_steps_per_epoch = count_steps_per_epoch

        # Times of `time.monotonic`, in seconds.
        now = time.monotonic()
        self._duration_stored_until = now
        self._deadline: float | None = None
        if config.resources.max_hours is not None:
            self._deadline = now + 3600 * config.resources.max_hours - store.seconds_searched

        for trial in store.ended_trials:
            # An earlier process may have been killed before it wrote the record.
            record_path = folder.trial_folder(trial.number) / "record.json"
            if not record_path.exists():
                self._write_record(trial)

    @property
    def out_of_time(self) -> bool:
        """True if the time limit (`--max-hours`) is reached."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    @property
    def out_of_budget(self) -> bool:
        """True if the trials so far use up the budget in steps or in seconds of training."""
        resources = self._config.resources
        if resources.budget_steps is not None and self._steps_used >= resources.budget_steps:
            return True
        return resources.budget_seconds is not None and self._seconds_used >= resources.budget_seconds

    @property
    def _steps_used(self) -> int:
        """Training steps of all trials. A running trial counts with all of its epochs."""
        steps = 0
        for trial in self._store.ended_trials:
            steps += trial.epoch * self._count_steps_per_epoch(trial.settings)
        for settings, _ in self._store.running_trials:
            steps += trial_epochs(self._config, settings) * self._count_steps_per_epoch(settings)
        return steps

    @property
    def _seconds_used(self) -> float:
        """Seconds of training of all trials. A running trial counts up to its latest report."""
        ended = sum(trial.seconds for trial in self._store.ended_trials)
        running = sum(report.metrics.get("seconds", 0.0) for _, report in self._store.running_trials)
        return ended + running

    def __next__(self) -> Job | None:
        out_of_budget = self.out_of_budget
        while True:
            trial = self._store.ask(allow_new=not (self.out_of_time or out_of_budget))
            if trial is None:
                break
            try:
                return trial_job(self._config, self._folder, trial.number, trial.params)
            except PrometarError as error:  # incompatible settings
                self._fail(trial.number, str(error))
        budget_may_grow = out_of_budget and self._store.running_trials
        if budget_may_grow and not self.out_of_time:
            return None
        raise StopIteration

    def started(self, job: Job) -> None:
        """Do nothing. The trial store has already created the trial."""

    def reported(self, job: Job, report: EpochReport) -> bool:
        """Store the report. Return False if the trial has ended or is pruned."""
        continues = self._store.report(job.trial_number, report)
        if not continues:
            self._write_ended_record(job.trial_number)
        return continues

    def finished(self, job: Job, failure: str) -> None:
        """Store the failure, if any. Otherwise, `reported` has already stored the result."""
        if failure:
            self._fail(job.trial_number, failure)

    def notices(self) -> Iterator[str]:
        """Yield messages that explain why the number of trials differs from --trials."""
        ended = self._store.ended_trials
        num_done = sum(not trial.is_baseline for trial in ended)
        if any(trial.is_baseline for trial in ended):
            num_done += 1  # a baseline that was rerun counts once
        num_trials = self._config.search.trials
        if self._store.exhausted:
            yield "Search space exhausted: every combination has been tried."
        elif self.out_of_time and num_done < num_trials:
            yield "Time limit reached (--max-hours): no more trials were started."
        elif self.out_of_budget and num_done < num_trials:
            yield "Budget used: no more trials were started."
        if num_done > num_trials:
            yield f"--trials is {num_trials}, but the study has {num_done} trials. All are used."

    def close(self) -> None:
        """Store the duration of the search."""
        self._add_duration()

    def _add_duration(self) -> None:
        """Add the seconds since the last call to the stored duration of the search."""
        now = time.monotonic()
        self._store.add_seconds(now - self._duration_stored_until)
        self._duration_stored_until = now

    def _fail(self, number: int, reason: str) -> None:
        """Mark a trial as failed, and write its record."""
        self._store.fail(number, reason)
        self._write_ended_record(number)

    def _write_ended_record(self, number: int) -> None:
        """Write the record of a trial that has just ended."""
        self._write_record(self._store.record(number))
        self._add_duration()  # so that the duration is stored even if the process is killed later

    def _write_record(self, trial: TrialRecord) -> None:
        """Write a trial's record and delete its checkpoints, which may be large."""
        self._folder.write(trial)
        for checkpoint in self._folder.trial_folder(trial.number).rglob("checkpoint*.safetensors"):
            checkpoint.unlink(missing_ok=True)
