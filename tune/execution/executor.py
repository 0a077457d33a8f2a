"""Execution of jobs on Ray Tune: placement, concurrency, retries and reuse of workers."""

import gc
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from traceback import clear_frames

from ray import tune as ray_tune
from rich.console import Console

from prometar.errors import RESUME, InfrastructureError, WorkError, last_line
from tune.execution.dispatcher import Dispatcher
from tune.execution.job import Job, Observer
from tune.execution.machines import Machines
from tune.execution.patching import patch_tune
from tune.execution.resources import JobResources
from tune.execution.shutdown import RAY_DIED, Shutdown
from tune.execution.tune_adapters import JobScheduler, JobSearcher, JobStopper
from tune.execution.worker import JobWorker


def run_jobs(
    jobs: Iterator[Job | None],
    resources: JobResources,
    observers: Sequence[Observer] = (),
    *,
    console: Console,
    timeout_seconds: float | None = None,
    independent_inputs: bool = False,
    worker: type[JobWorker] = JobWorker,
) -> Mapping[str, str]:
    """Run jobs on Ray Tune. Return failure reasons, keyed by job name.

    Args:
        jobs: Jobs in the order in which they start. An iterator that yields None is asked again after the
            next result, so results may determine the next jobs (see `Dispatcher`).
        resources: Concurrency, and the resources per job.
        observers: Observers of all jobs.
        console: Console for messages about avoided machines and an early stop.
        timeout_seconds: Seconds without a report before a hung worker is restarted. None: no limit.
        independent_inputs: True if the jobs read different datasets. A job whose data no machine can read
            then fails, and other jobs continue.
        worker: Class of the workers.

    Raises:
        KeyboardInterrupt: a signal stopped the jobs. The next call resumes jobs that were running.
        InfrastructureError: no machine is left that can run a job, or the database is unusable. A machine
            cannot run a job if it lacks data or weights, its disk is full, its GPU is unusable, or its
            workers die.
        WorkError: Ray or Tune failed.
        Exception: any other error raised by `jobs` or an observer, unchanged.
    """
    shutdown = Shutdown(console)
    machines = Machines(resources, console.print)
    dispatcher = Dispatcher(
        jobs, resources, timeout_seconds, observers, shutdown, machines, independent_inputs=independent_inputs
    )
    tune_error: BaseException | None = None
    with shutdown.watch():
        try:
            _fit(dispatcher, resources.max_concurrent, worker)
        except (Exception, KeyboardInterrupt) as error:  # KeyboardInterrupt: a second signal
            # Callers may keep the error, as notebooks do. The frames of its traceback would keep workers
            # alive. They are parts of reference cycles, which only the garbage collector ends.
            clear_frames(error.__traceback__)
            gc.collect()
            tune_error = error

    # Later errors may be consequences of earlier ones, so the most basic cause is reported.
    if shutdown.ray_died:
        raise WorkError(RAY_DIED)
    if isinstance(dispatcher.error, InfrastructureError):
        reason = str(dispatcher.error).rstrip(".")
        raise InfrastructureError(f"Stopped: {reason}. {RESUME}") from None
    if dispatcher.error is not None:
        raise dispatcher.error
    if isinstance(tune_error, Exception):
        raise WorkError(f"Stopped: {last_line(str(tune_error))}. {RESUME}") from tune_error
    if shutdown.requested:
        raise KeyboardInterrupt
    return dispatcher.failures


def _fit(dispatcher: Dispatcher, max_concurrent: int, worker: type[JobWorker]) -> None:
    """Run the jobs of the dispatcher with Tune. Return when no job is left, or when Tune is stopped."""
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune's handler would end only `fit`, not the study
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(max_concurrent)  # the dispatcher limits it further
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "86400")  # rarely, because no state is restored
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)

    tune_config = ray_tune.TuneConfig(
        search_alg=JobSearcher(dispatcher),
        scheduler=JobScheduler(dispatcher),
        num_samples=-1,  # until the searcher has finished
        reuse_actors=True,
    )
    with tempfile.TemporaryDirectory(prefix="prometar-") as scratch, patch_tune():
        run_config = ray_tune.RunConfig(
            storage_path=scratch,
            stop=JobStopper(dispatcher),
            verbose=0,
            # In a notebook, Tune's default reporter would clear the output of the cell.
            progress_reporter=ray_tune.CLIReporter(),
            # The dispatcher retries jobs, because Tune counts a worker's death during a reset twice.
            failure_config=ray_tune.FailureConfig(max_failures=0),
            checkpoint_config=ray_tune.CheckpointConfig(checkpoint_at_end=False, checkpoint_frequency=0),
        )
        ray_tune.Tuner(worker, tune_config=tune_config, run_config=run_config).fit()
