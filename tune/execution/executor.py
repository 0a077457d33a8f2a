"""Execution of jobs on Ray Tune: placement, concurrency, retries and reuse of workers."""

import gc
import logging
import os
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from traceback import clear_frames
from typing import Any

from ray import cloudpickle
from ray import tune as ray_tune
from ray.exceptions import RayActorError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper
from rich.console import Console

from prometar.errors import RESUME, InfrastructureError, WorkError, last_line
from prometar.io.files import cannot_write_error
from tune.execution.job import Job, Observer
from tune.execution.patching import patch_tune
from tune.execution.resources import ResourcePlan
from tune.execution.shutdown import RAY_DIED, Shutdown
from tune.execution.worker import STACKS_FILE, JobRequest, JobWorker

MAX_RETRIES = 2
"""Maximum number of consecutive retries of a job whose workers die before completing another epoch."""
_MAX_REASON_LENGTH = 1000  # in characters. Error messages may contain long URLs.


def run_jobs(
    jobs: Iterator[Job],
    plan: ResourcePlan,
    observers: Sequence[Observer] = (),
    *,
    console: Console,
    timeout_seconds: float | None = None,
    worker: type[JobWorker] = JobWorker,
) -> Mapping[str, str]:
    """Run jobs on Ray Tune. Return failure reasons, keyed by job name.

    Args:
        plan: Concurrency, and the resources per job.
        console: Console for messages about an early stop.
        timeout_seconds: Seconds without a report before a hung worker is restarted. None: no limit.

    Raises:
        KeyboardInterrupt: a signal stopped the jobs. The next call resumes jobs that were running.
        InfrastructureError: a disk is full, a folder is not writable, or a GPU or the database is unusable.
        WorkError: Ray or Tune failed.
        Exception: any other error raised by `jobs` or an observer, unchanged.
    """
    shutdown = Shutdown(console)
    dispatcher = _Dispatcher(jobs, plan, timeout_seconds, observers, shutdown)
    tune_error: BaseException | None = None
    with shutdown.watch():
        try:
            _fit(dispatcher, plan.max_concurrent, worker)
        except (Exception, KeyboardInterrupt) as error:  # KeyboardInterrupt: a second signal
            # Callers may keep the error, as notebooks do. Its frames, in cycles, would keep workers alive.
            clear_frames(error.__traceback__)
            gc.collect()
            tune_error = error
    if shutdown.ray_died:
        raise WorkError(RAY_DIED)
    if isinstance(dispatcher.error, InfrastructureError):
        raise InfrastructureError(f"Stopped: {str(dispatcher.error).rstrip('.')}. {RESUME}") from None
    if dispatcher.error is not None:
        raise dispatcher.error
    if isinstance(tune_error, Exception):
        raise WorkError(f"Stopped: {last_line(str(tune_error))}. {RESUME}") from tune_error
    if shutdown.requested:
        raise KeyboardInterrupt
    return dispatcher.failures


def _fit(dispatcher: "_Dispatcher", max_concurrent: int, worker: type[JobWorker]) -> None:
    """Run the jobs of the dispatcher with Tune. Return when no job is left, or when Tune is stopped."""
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune's handler would end only `fit`, not the study
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "86400")  # rarely: Tune's state is never restored
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="prometar-") as scratch, patch_tune():
        ray_tune.Tuner(
            worker,
            tune_config=ray_tune.TuneConfig(
                search_alg=dispatcher,
                scheduler=_Scheduler(dispatcher),
                num_samples=-1,
                max_concurrent_trials=max_concurrent,
                reuse_actors=True,
            ),
            run_config=ray_tune.RunConfig(
                storage_path=scratch,
                stop=dispatcher,
                verbose=0,
                # In a notebook, Tune's default reporter would clear the output of the cell.
                progress_reporter=ray_tune.CLIReporter(),
                # The dispatcher retries jobs, because Tune counts a worker's death during a reset twice.
                failure_config=ray_tune.FailureConfig(max_failures=0),
                checkpoint_config=ray_tune.CheckpointConfig(checkpoint_at_end=False, checkpoint_frequency=0),
            ),
        ).fit()


@dataclass
class _Submission:
    """State of a submitted job, across its retries. Each retry is a new Tune trial.

    Attributes:
        request: Job, resources and timeout for the worker.
        deaths: Number of worker deaths since the last new epoch, except those due to lack of memory.
        epoch: Highest reported epoch.
        reported_error: Error message of the latest report, or "".
        ended: True if the latest report is the final one, or if an observer stopped the job.
        worker_error: Error of the worker that died most recently, or None.
    """

    request: JobRequest
    deaths: int = 0
    epoch: int = 0
    reported_error: str = ""
    ended: bool = False
    worker_error: BaseException | None = None


class _Dispatcher(Searcher, Stopper):
    """Tune searcher that submits jobs, and also the Tune stopper, which receives the report of every epoch.

    Tune calls `suggest` for a job, `__call__` for each report and `on_trial_complete` at the end of a trial.
    If one of these methods raises, `stop_all` then returns True. Tune itself might fail only the trial.

    Attributes:
        error: First error of `jobs`, an observer or a worker's machine. It ends the experiment.
        failures: Failure reasons by job name.
    """

    def __init__(
        self,
        jobs: Iterator[Job],
        plan: ResourcePlan,
        timeout_seconds: float | None,
        observers: Sequence[Observer],
        shutdown: Shutdown,
    ) -> None:
        super().__init__()
        self._jobs, self._plan, self._timeout_seconds = jobs, plan, timeout_seconds
        self._observers, self._shutdown = observers, shutdown
        self._running: dict[str, _Submission] = {}  # by ID of the Tune trial
        self._retries: deque[_Submission] = deque()
        self.error: Exception | None = None
        self.failures: dict[str, str] = {}

    def __getstate__(self) -> dict[str, object]:
        """Return {}. Tune pickles its searcher, but the jobs' database connections cannot be pickled."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Do nothing, because Tune's state is never restored."""

    def stop_all(self) -> bool:
        """Return True if the experiment must end, because of an error or because Ray died."""
        return self.error is not None or self._shutdown.ray_died

    @contextmanager
    def _end_on_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.error = self.error or error
            raise

    def suggest(self, trial_id: str) -> Any:
        """Return the configuration of a Tune trial, None to be called again later, or `FINISHED`."""
        with self._end_on_error():
            if self._shutdown.requested:
                return Searcher.FINISHED
            submission = self._retries.popleft() if self._retries else self._next_submission()
            if submission is None:  # a job that is still running may need a retry
                return None if self._running else Searcher.FINISHED
            self._running[trial_id] = submission
            return {"request": submission.request}

    def _next_submission(self) -> _Submission | None:
        job = next(self._jobs, None)
        if job is None:
            self._jobs = iter(())  # so that `next`, which may be expensive, is not called again
            return None
        for folder in job.configs:  # workers check that the folders exist, i.e. that storage is shared
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise cannot_write_error(folder, error) from None
        for observer in self._observers:
            observer.started(job)
        return _Submission(JobRequest(job, self._plan, self._plan.bundles(), self._timeout_seconds))

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Pass the report of an epoch to the observers. Return True to stop the trial."""
        submission, report = self._running[trial_id], result["report"]
        if report.epoch > submission.epoch:  # after a retry, earlier epochs are reported again
            submission.epoch, submission.deaths = report.epoch, 0
        with self._end_on_error():  # an observer returns False to stop the job
            stopped = False in [each.reported(submission.request.job, report) for each in self._observers]
        submission.ended = report.finished or stopped
        submission.reported_error = report.error
        return submission.ended or self._shutdown.requested

    def record_worker_error(self, trial: Trial) -> None:
        """Store a dead worker's error. `Trial.get_pickled_error` reads Tune's storage, which lacks it."""
        if trial.pickled_error_file and Path(trial.pickled_error_file).exists():
            error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
            self._running[trial.trial_id].worker_error = getattr(error, "cause", None) or error

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Finish or retry a Tune trial's job, unless the experiment ends or a signal interrupted the job."""
        submission = self._running.pop(trial_id)
        if self.stop_all() or (not error and not submission.ended):
            return
        with self._end_on_error():
            if error and isinstance(submission.worker_error, InfrastructureError):
                raise submission.worker_error
            if error and self._prepare_retry(submission):
                self._retries.append(submission)
                return
            job = submission.request.job
            failure = self._failure_reason(submission) if error else submission.reported_error
            self.failures |= {job.name: failure} if failure else {}
            for observer in self._observers:
                observer.finished(job, failure)

    def _prepare_retry(self, submission: _Submission) -> bool:
        """Prepare a retry, with more resources if memory ran out. Return False if the job has to fail."""
        if isinstance(submission.worker_error, MemoryError):
            larger = self._plan.enlarge(submission.request.bundles)
            submission.request = replace(submission.request, bundles=larger or submission.request.bundles)
            return larger is not None
        submission.deaths += 1
        return submission.deaths <= MAX_RETRIES

    def _failure_reason(self, submission: _Submission) -> str:
        path, seconds = submission.request.job.folder / STACKS_FILE, submission.request.timeout_seconds
        if seconds and path.exists() and path.stat().st_size:
            return (
                f"No epoch finished within {seconds:g} s. {path} contains the worker's stacks. "
                "Fix the cause, or set a longer resources.epoch_timeout."
            )
        error = submission.worker_error or WorkError("The worker died.")
        prefix = "" if isinstance(error, RayActorError | WorkError) else f"{type(error).__name__}: "
        return f"{prefix}{last_line(str(error))}"[:_MAX_REASON_LENGTH]


class _Scheduler(FIFOScheduler):
    """Scheduler that passes workers' errors to the dispatcher. Tune does not pass them to searchers."""

    def __init__(self, dispatcher: _Dispatcher) -> None:
        super().__init__()
        self._dispatcher = dispatcher

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self._dispatcher.record_worker_error(trial)
