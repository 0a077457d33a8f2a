"""Execution of jobs on Ray Tune: placement, concurrency, retries and reuse of workers.

The source decides what is run and what is stopped. Nothing that Tune stores is ever read again.
"""

import logging
import os
import re
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from ray import tune
from ray.tune.error import TuneError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper
from rich.console import Console

from prometar.errors import PrometarError, StorageError, WorkError, first_line, last_line
from prometar.io.files import is_refused_write, refused
from tune.execution.jobs import EpochReport, Job, JobSource, Observer, Wait
from tune.execution.patching import reuse_prestarted_workers, treat_oom_as_actor_death
from tune.execution.resources import ResourcePlan
from tune.execution.stopping import RAY_DIED, RESUME, Stopping
from tune.execution.worker import Task, TrialWorker

MAX_RETRIES = 2
"""Retries of a job in one epoch after its worker died. It resumes from its own checkpoint."""

_MAX_REASON = 1000  # characters, since messages may contain long URLs
_OUT_OF_MEMORY = (
    "torch.OutOfMemoryError", "CUDA out of memory",
    "CUDA error: out of memory",  # of a context or a graph, not of torch's allocator
    "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_ALLOC_FAILED",
    "_ALLOCATION_FAILED",  # cuDNN from 9.0 on
    "NVML_SUCCESS == ",  # torch asks who uses the memory, which a MIG device does not tell
    "ray.exceptions.OutOfMemoryError",  # Ray's memory monitor
    "can't allocate memory", "MemoryError",
)  # fmt: skip


@dataclass(frozen=True)
class ExecutionContext:
    """Terms on which jobs are run. They do not influence results.

    Args:
        plan: Concurrency and the resources per job.
        timeout_seconds: Seconds without a report after which a worker is restarted. None: no limit.
        verbose: Show Tune's own output.
    """

    plan: ResourcePlan
    console: Console
    timeout_seconds: float | None = None
    verbose: bool = False
    trainable: type[TrialWorker] = TrialWorker


def run_jobs(source: JobSource, context: ExecutionContext, observers: Sequence[Observer] = ()) -> None:
    """Run the jobs of a source on Ray Tune until no more come.

    Raises:
        KeyboardInterrupt: a signal stopped the jobs. The running ones resume when they are run again.
        StorageError: a disk is full, a folder cannot be written, or the source's storage is unreachable.
        WorkError: Ray died, or the source or an observer raised an error.
    """
    stopping = Stopping(context.console)
    dispatcher = _Dispatcher(source, context, observers, stopping)
    try:
        with stopping.listening():
            _fit(dispatcher, context)
        if dispatcher.error is not None:
            raise dispatcher.error
    except Exception as error:
        if stopping.ray_died:
            raise WorkError(RAY_DIED) from None
        cause = dispatcher.error or error  # Tune passes on its text alone
        kind = type(cause) if isinstance(cause, PrometarError) else WorkError
        raise kind(f"Stopped: {_root_cause(cause)}") from cause
    if stopping.ray_died:
        raise WorkError(RAY_DIED)
    if stopping.requested:
        raise KeyboardInterrupt


def _fit(dispatcher: "_Dispatcher", context: ExecutionContext) -> None:
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # it would end the search, and the study would continue
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "86400")
    if not context.verbose:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with (
        tempfile.TemporaryDirectory(prefix="prometar-") as scratch,
        treat_oom_as_actor_death(),
        reuse_prestarted_workers(),
    ):
        tune.Tuner(
            context.trainable,
            tune_config=tune.TuneConfig(
                search_alg=_Searcher(dispatcher),
                scheduler=_Scheduler(dispatcher),
                num_samples=-1,
                max_concurrent_trials=context.plan.max_concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                stop=_Abort(dispatcher),
                verbose=1 if context.verbose else 0,
                # Tune's default in a notebook clears the output of the cell.
                progress_reporter=None if context.verbose else tune.CLIReporter(),
                # The dispatcher retries: Tune counts a death during a reset twice, and then gives up.
                failure_config=tune.FailureConfig(max_failures=0),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False, checkpoint_frequency=0),
            ),
        ).fit()


@dataclass
class _Attempt:
    """A job on its way through Tune. A retry is a new trial of Tune with the same attempt.

    Attributes:
        bundles: Resources of its worker.
        deaths: Of its workers since the last new epoch.
        epoch: Last one that was reported.
        failure: Why it failed. ended: True after its last report, or if the source stopped it.
        reason: Why its worker died. out_of_memory: True if that was because memory ran out.
    """

    job: Job
    bundles: list[dict[str, float]]
    deaths: int = 0
    epoch: int = 0
    failure: str = ""
    ended: bool = False
    reason: str = ""
    out_of_memory: bool = False


class _Dispatcher:
    """Passes jobs from the source to Tune's trials, and their results back.

    Attributes:
        error: First error of the source, of an observer or of a disk. Nothing more is run.
    """

    def __init__(
        self,
        source: JobSource,
        context: ExecutionContext,
        observers: Sequence[Observer],
        stopping: Stopping,
    ) -> None:
        self._source, self._context, self._observers = source, context, observers
        self._stopping = stopping
        self._session = uuid4().hex[:8]
        self._running: dict[str, _Attempt] = {}  # by the id of Tune's trial
        self._retries: deque[_Attempt] = deque()
        self.error: Exception | None = None

    @property
    def aborted(self) -> bool:
        """True if nothing more can be run."""
        return self.error is not None or self._stopping.ray_died

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.error = self.error or error
            raise

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the configuration of a trial, None if one may follow, or `Searcher.FINISHED`."""
        with self._recorded():
            if self._stopping.requested:
                return Searcher.FINISHED
            attempt = self._retries.popleft() if self._retries else self._next()
            if attempt is None:  # a running job may need a retry
                return None if self._running else Searcher.FINISHED
            self._running[trial_id] = attempt
            return {"task": self._task(attempt)}

    def _next(self) -> _Attempt | None:
        job = self._source.next()
        if job is None or isinstance(job, Wait):
            return None
        for run in job.runs:  # a worker that does not see the folder is on another file system
            try:
                Path(run.folder).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise refused(Path(run.folder), error) from None
        for observer in self._observers:
            observer.started(job)
        return _Attempt(job, self._context.plan.bundles())

    def _task(self, attempt: _Attempt) -> Task:
        context = self._context
        return Task(attempt.job, context.plan, attempt.bundles, context.timeout_seconds, self._session)

    def report(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Report an epoch. Return False to stop the trial."""
        attempt = self._running[trial_id]
        report = EpochReport(**{k: result[k] for k in EpochReport.__annotations__ if k in result})  # type: ignore[typeddict-item]
        if report.get("epoch", 0) > attempt.epoch:  # a new worker repeats what an earlier one reported
            attempt.epoch, attempt.deaths = report["epoch"], 0
        with self._recorded():
            resources = self._task(attempt).resources
            continues = self._source.report(attempt.job, report, resources)
            for observer in self._observers:
                observer.reported(attempt.job, report)
        attempt.ended = bool(report.get("finished")) or not continues
        # A source that stops a job knows why.
        attempt.failure = report.get("failed", "") if continues else ""
        return not attempt.ended and not self._stopping.requested

    def died(self, trial_id: str, failure: str) -> None:
        """Record why a worker died."""
        attempt = self._running[trial_id]
        attempt.reason = (last_line(failure) or "The worker died.")[:_MAX_REASON]
        attempt.out_of_memory = any(sign in failure for sign in _OUT_OF_MEMORY)

    def end(self, trial_id: str, *, error: bool) -> None:
        """Finish the job of a trial, retry it, or leave it as interrupted."""
        attempt = self._running.pop(trial_id)
        if self.aborted or (not error and not attempt.ended):
            return
        with self._recorded():
            if error and is_refused_write(attempt.reason):
                raise StorageError(re.sub(r"^[\w.]+: ", "", attempt.reason))
            if error and self._retry(attempt):
                self._retries.append(attempt)
                return
            failure = attempt.reason if error else attempt.failure
            self._source.finish(attempt.job, failure)
            for observer in self._observers:
                observer.finished(attempt.job, failure)

    def _retry(self, attempt: _Attempt) -> bool:
        """Return True if a job whose worker died is retried. Out of memory, it needs a larger share."""
        if attempt.out_of_memory:
            larger = self._context.plan.larger(attempt.bundles)
            attempt.bundles = larger or attempt.bundles
            return larger is not None
        attempt.deaths += 1
        return attempt.deaths <= MAX_RETRIES


class _Relay:
    """Base of Tune's counterparts of the dispatcher. Pickled without it, because it holds connections."""

    def __init__(self, dispatcher: _Dispatcher) -> None:
        super().__init__()
        self._dispatcher = dispatcher

    def __getstate__(self) -> dict[str, object]:
        return {}


class _Searcher(_Relay, Searcher):
    def suggest(self, trial_id: str) -> Any:
        return self._dispatcher.suggest(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        self._dispatcher.end(trial_id, error=error)

    def save(self, checkpoint_path: str) -> None:
        """There is nothing to save."""


class _Scheduler(_Relay, FIFOScheduler):
    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict) -> str:
        continues = self._dispatcher.report(trial.trial_id, result)
        return TrialScheduler.CONTINUE if continues else TrialScheduler.STOP

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict) -> None:
        if result.get("finished"):  # else `on_trial_result` received it and stopped the trial
            self._dispatcher.report(trial.trial_id, result)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self._dispatcher.died(trial.trial_id, _last_failure(trial))


class _Abort(_Relay, Stopper):
    """Ends Tune's experiment after an error. Tune takes some of them for errors of a trial."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._dispatcher.aborted


def _last_failure(trial: Trial) -> str:
    """Return Tune's text about the death of a worker. `Trial.get_error` looks where it is copied later."""
    file = Path(trial.error_file) if trial.error_file else None
    text = file.read_text("utf-8", "replace") if file is not None and file.exists() else ""
    return text.rpartition("Failure #")[2].strip()


def _root_cause(error: BaseException) -> str:
    """Return the message of the innermost cause in one line, with the way to resume."""
    while not isinstance(error, PrometarError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, PrometarError):
        text = str(error)
        if "to resume" in text:
            return text
    else:
        said = last_line(str(error)) if isinstance(error, TuneError) else first_line(error)
        text = f"{type(error).__name__}: {said}"
    return f"{text.rstrip('.')}. {RESUME}"
