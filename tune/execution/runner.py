"""Run a course on Ray Tune: placement, concurrency, retries, reuse of workers; no state of its is kept."""

import logging
import os
import re
import tempfile
from contextlib import closing

from ray import tune
from ray.tune import (
    CheckpointConfig,
    CLIReporter,
    FailureConfig,
    PlacementGroupFactory,
    RunConfig,
    TuneConfig,
    Tuner,
)
from ray.tune.error import TuneError

from prometar.distributed.placement import STRATEGY
from prometar.errors import StorageError, WorkError, last_line
from tune.execution.course import Course, RelayedCallback, RelayedScheduler, RelayedSearcher, Running, T
from tune.execution.jobs import MAX_FAILURES
from tune.execution.ray_private import (
    callbacks_are_not_counted,
    idle_workers_stay,
    killed_for_memory_is_dead,
    workers_are_like_any_other,
)
from tune.execution.reruns import Means
from tune.optimizer.storage import GO_ON


def run_course(course: Course[T], means: Means) -> T:
    """Run the batches of a course, one after another. Returns what it has led to.

    Raises:
        KeyboardInterrupt: a stop was asked for, and the trials have ended with a result.
        WorkError: what a searcher, scheduler or callback raised.
    """
    running = Running(course)
    with closing(course):  # it tidies up, wherever it has been left
        running.begin_next()
        if running.batch is not None:
            _fit(running, means)
    if running.problem is not None:
        raise running.problem
    if not running.over:
        raise KeyboardInterrupt
    return running.result


def _fit(running: Running[T], means: Means) -> None:
    plan, stopping, verbose = means.plan, means.stopping, means.verbose
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # records are the study's own
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # else Ctrl-C would end the search, and the study go on
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "86400")  # no snapshot of Tune's is ever read
    os.environ.setdefault("TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "600")
    if not verbose:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    # Everything worth keeping lies in the jobs' folders and the study's storage: Tune's files may go.
    with tempfile.TemporaryDirectory(prefix="prometar-") as scratch:
        tuner = Tuner(
            tune.with_resources(means.trainable, PlacementGroupFactory(plan.bundles(), strategy=STRATEGY)),
            tune_config=TuneConfig(
                search_alg=RelayedSearcher(running, stopping),
                scheduler=RelayedScheduler(running),
                num_samples=-1,
                max_concurrent_trials=plan.max_concurrent,
                reuse_actors=True,
            ),
            run_config=RunConfig(
                storage_path=scratch,
                callbacks=[RelayedCallback(running, stopping)],
                verbose=1 if verbose else 0,
                # Silent here; the one that Tune takes in a notebook wipes out what the study has said.
                progress_reporter=None if verbose else CLIReporter(),
                failure_config=FailureConfig(max_failures=MAX_FAILURES),
                checkpoint_config=CheckpointConfig(checkpoint_at_end=False, checkpoint_frequency=0),
            ),
        )
        try:
            with (
                stopping.listening(),
                idle_workers_stay(),
                killed_for_memory_is_dead(),
                callbacks_are_not_counted(),
                workers_are_like_any_other(),
            ):
                tuner.fit()
        except StorageError as error:  # a write of the driver's, or a worker that could not begin
            raise StorageError(f"the study has stopped: {error}; {GO_ON}") from None
        except (TuneError, RuntimeError) as error:
            if stopping.died:
                raise WorkError(stopping.died) from None
            # A searcher's, scheduler's or callback's, as text.
            raise WorkError(f"the study has stopped: {last_error(str(error))}; {GO_ON}") from None


def last_error(traceback: str) -> str:
    """The last exception that a traceback's text names, without where it was raised; one of ours by its text.

    Example:
        >>> last_error("Traceback (most recent call last):\\n  File ...\\nOSError: no space left\\n(hints)")
        'OSError: no space left'
    """
    named = re.findall(r"^[\w.]*[A-Z]\w*: .+", traceback, flags=re.MULTILINE)
    telling = [line for line in named if "StorageInternalError" not in line]  # Optuna's, about any cause
    last = str((telling or named)[-1]) if named else last_line(traceback)
    return re.sub(r"^prometar\.errors\.\w+: ", "", last)
