"""Execution of jobs on Ray Tune: placement, concurrency, retries and reuse of workers.

Nothing that Tune stores is ever read again.
"""

import logging
import os
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune
from ray.exceptions import RayActorError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper
from rich.console import Console

from prometar.errors import StorageError, WorkError, last_line
from prometar.io.files import refused
from tune.execution.jobs import Job, Observer
from tune.execution.patching import patched
from tune.execution.resources import ResourcePlan
from tune.execution.stopping import RAY_DIED, RESUME, Stopping
from tune.execution.worker import STACKS, Task, TrialWorker

MAX_RETRIES = 2
"""Retries of a job in one epoch after its worker died. It resumes from its own checkpoint."""

_MAX_REASON = 1000  # characters, since messages may contain long URLs


def run_jobs(
    jobs: Iterator[Job],
    plan: ResourcePlan,
    observers: Sequence[Observer] = (),
    *,
    console: Console,
    timeout_seconds: float | None = None,
    worker: type[TrialWorker] = TrialWorker,
) -> Mapping[str, str]:
    """Run jobs on Ray Tune until no more come. Return the reasons of those that failed, by name.

    Args:
        plan: Concurrency and the resources per job.
        console: Where signals are acknowledged.
        timeout_seconds: Seconds without a report after which a worker is restarted. None: no limit.

    Raises:
        KeyboardInterrupt: a signal stopped the jobs. The running ones resume when they are run again.
        StorageError: a disk is full, or a folder cannot be written.
        WorkError: Ray or Tune failed. Errors of `jobs` and of observers are raised as they are.
    """
    stopping = Stopping(console)
    dispatcher = _Dispatcher(jobs, plan, timeout_seconds, observers, stopping)
    failure: Exception | None = None
    with stopping.listening():
        try:
            _fit(dispatcher, plan.max_concurrent, worker)
        except Exception as error:
            failure = error
    if stopping.ray_died:
        raise WorkError(RAY_DIED)
    if isinstance(dispatcher.error, StorageError):
        raise StorageError(f"Stopped: {dispatcher.error}. {RESUME}") from None
    if dispatcher.error is not None:
        raise dispatcher.error
    if failure is not None:
        raise WorkError(f"Stopped: {last_line(str(failure))}. {RESUME}") from failure
    if stopping.requested:
        raise KeyboardInterrupt
    return dispatcher.failures


def _fit(dispatcher: "_Dispatcher", max_concurrent: int, worker: type[TrialWorker]) -> None:
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # it would end the search, and the study would continue
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "86400")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="prometar-") as scratch, patched():
        tune.Tuner(
            worker,
            tune_config=tune.TuneConfig(
                search_alg=dispatcher,
                scheduler=_Scheduler(dispatcher),
                num_samples=-1,
                max_concurrent_trials=max_concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                stop=dispatcher,
                verbose=0,
                # Tune's default in a notebook clears the output of the cell.
                progress_reporter=tune.CLIReporter(),
                # The dispatcher retries: Tune counts a death during a reset twice, and then gives up.
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False, checkpoint_frequency=0),
            ),
        ).fit()


@dataclass
class _Attempt:
    """A job on its way through Tune. A retry is a new trial of Tune with the same attempt.

    Attributes:
        task: Its worker's task.
        deaths: Of its workers since the last new epoch.
        epoch: Last one that was reported.
        failure: Why it failed. ended: True after its last report, or if an observer stopped it.
        error: Why its worker died.
    """

    task: Task
    deaths: int = 0
    epoch: int = 0
    failure: str = ""
    ended: bool = False
    error: BaseException | None = None


class _Dispatcher(Searcher, Stopper):
    """Passes jobs to Tune's trials, and their results to observers.

    It ends Tune's experiment after an error, because Tune takes some of them for errors of a trial.

    Attributes:
        error: First error of the jobs, of an observer or of a disk. Nothing more is run.
        failures: Reasons of jobs that failed, by name.
    """

    def __init__(
        self,
        jobs: Iterator[Job],
        plan: ResourcePlan,
        timeout_seconds: float | None,
        observers: Sequence[Observer],
        stopping: Stopping,
    ) -> None:
        super().__init__()
        self._jobs, self._plan, self._timeout_seconds = jobs, plan, timeout_seconds
        self._observers, self._stopping = observers, stopping
        self._running: dict[str, _Attempt] = {}  # by the id of Tune's trial
        self._retries: deque[_Attempt] = deque()
        self.error: Exception | None = None
        self.failures: dict[str, str] = {}

    def __getstate__(self) -> dict[str, object]:
        """Tune pickles it, but it holds connections."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """There is nothing to save."""

    def stop_all(self) -> bool:
        """Return True if nothing more can be run."""
        return self.error is not None or self._stopping.ray_died

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.error = self.error or error
            raise

    def suggest(self, trial_id: str) -> Any:
        """Return the configuration of a trial, None if one may follow, or `Searcher.FINISHED`."""
        with self._recorded():
            if self._stopping.requested:
                return Searcher.FINISHED
            attempt = self._retries.popleft() if self._retries else self._next()
            if attempt is None:  # a running job may need a retry
                return None if self._running else Searcher.FINISHED
            self._running[trial_id] = attempt
            return {"task": attempt.task}

    def _next(self) -> _Attempt | None:
        job = next(self._jobs, None)
        if job is None:
            self._jobs = iter(())  # asking again may be expensive
            return None
        for folder in job.runs:  # a worker that does not see the folder is on another file system
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise refused(folder, error) from None
        for observer in self._observers:
            observer.started(job)
        return _Attempt(Task(job, self._plan, self._plan.bundles(), self._timeout_seconds))

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Report an epoch to the observers. Return True to stop the trial."""
        attempt, report = self._running[trial_id], result["report"]
        if report.epoch > attempt.epoch:  # a new worker repeats what an earlier one reported
            attempt.epoch, attempt.deaths = report.epoch, 0
        with self._recorded():
            stops = False in [each.reported(attempt.task.job, report) for each in self._observers]
        attempt.ended = report.finished or stops
        attempt.failure = "" if stops else report.failed  # an observer that stops a job knows why
        return attempt.ended or self._stopping.requested

    def died(self, trial: Trial) -> None:
        """Record why a worker died. `Trial.get_pickled_error` looks where the error is copied later."""
        if trial.pickled_error_file and Path(trial.pickled_error_file).exists():
            error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
            self._running[trial.trial_id].error = getattr(error, "cause", None) or error

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Finish the job of a trial, retry it, or leave it as interrupted."""
        attempt = self._running.pop(trial_id)
        if self.stop_all() or (not error and not attempt.ended):
            return
        with self._recorded():
            if error and isinstance(attempt.error, StorageError):
                raise attempt.error
            if error and self._retry(attempt):
                self._retries.append(attempt)
                return
            job, failure = attempt.task.job, self._reason(attempt) if error else attempt.failure
            self.failures |= {job.name: failure} if failure else {}
            for observer in self._observers:
                observer.finished(job, failure)

    def _retry(self, attempt: _Attempt) -> bool:
        """Return True if a job whose worker died is retried. Out of memory, it needs a larger share."""
        if isinstance(attempt.error, MemoryError):
            larger = self._plan.larger(attempt.task.bundles)
            attempt.task = replace(attempt.task, bundles=larger or attempt.task.bundles)
            return larger is not None
        attempt.deaths += 1
        return attempt.deaths <= MAX_RETRIES

    def _reason(self, attempt: _Attempt) -> str:
        stacks, seconds = attempt.task.job.folder / STACKS, attempt.task.timeout_seconds
        if seconds and stacks.exists() and stacks.stat().st_size:
            return (
                f"Its workers hung: no result within {seconds:g} s. {stacks} shows where. Fix the cause, or "
                "set a longer resources.trial_timeout."
            )
        error = attempt.error or WorkError("The worker died.")
        kind = "" if isinstance(error, RayActorError | WorkError) else f"{type(error).__name__}: "
        return f"{kind}{last_line(str(error))}"[:_MAX_REASON]


class _Scheduler(FIFOScheduler):
    """Tells the dispatcher why a worker died, which Tune does not tell a searcher."""

    def __init__(self, dispatcher: _Dispatcher) -> None:
        super().__init__()
        self._dispatcher = dispatcher

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self._dispatcher.died(trial)
