"""Runs on Ray: one task per run, in a placement group with its stream."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from prometar.data.datasets.catalog import open_dataset
from prometar.data.streaming.stream import StreamOptions, stream
from prometar.distributed.gpus import only_given_gpus, require_given_gpus
from prometar.distributed.placement import STRATEGY, ResourcePlan
from prometar.errors import StorageError, UserError, WorkError, last_line, one_line
from prometar.reproduce.grid import (
    GridResult,
    GridRun,
    TargetTest,
    read_grid_result,
    read_tests,
    write_tests,
)
from prometar.runs import evaluate_on, train_run, trained

MAX_RETRIES = 2  # of a run whose worker died; it resumes from its checkpoint
START_SECONDS = 300
LOCK_SECONDS = 60
"""Ray needs a moment to end the workers of a killed driver, which lock the folders of their runs."""


@dataclass(frozen=True)
class GridJob:
    """A run, its folder and its resources."""

    run: GridRun
    folder: Path
    threads: int
    stream_cpus: float


def run_jobs(jobs: Sequence[GridJob], plan: ResourcePlan, *, on_result: Callable[[GridResult], None]) -> None:
    """Run all jobs. `on_result` receives each result, also of runs that failed.

    Raises:
        WorkError: no worker starts, or nothing can be stored. The next runs would fail as well.
    """
    groups = [
        placement_group(plan.bundles(), strategy=STRATEGY) for _ in range(min(plan.max_concurrent, len(jobs)))
    ]
    waiting, free = deque(jobs), deque(groups)
    running = dict[ray.ObjectRef, tuple[GridJob, int]]()
    try:
        if groups and not groups[0].wait(START_SECONDS):
            raise WorkError(
                f"No run has started in {START_SECONDS} s: the cluster has no {plan.bundles()} left."
            )
        while waiting or running:
            while waiting and free:
                group, job = free.popleft(), waiting.popleft()
                place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
                task = ray.remote(train_and_test).options(
                    num_cpus=plan.bundles()[0]["CPU"], num_gpus=plan.gpus_per_trial,
                    max_retries=MAX_RETRIES, scheduling_strategy=place,
                )  # fmt: skip
                running[task.remote(job)] = job, groups.index(group)
            (done, *_), _ = ray.wait(list(running))
            job, number = running.pop(done)
            on_result(read_grid_result(job.run, job.folder, reason=_failure(done)))
            free.append(groups[number])
    finally:
        for group in groups:
            remove_placement_group(group)


def _failure(done: ray.ObjectRef) -> str:
    """Return why a run failed; empty if it finished.

    Raises:
        WorkError: the storage failed, not the run.
    """
    try:
        ray.get(done)
    except RayTaskError as error:
        if isinstance(error.cause, StorageError):
            raise WorkError(f"{error.cause}. Rerun the same command to resume.") from None
        known = isinstance(error.cause, UserError)
        return one_line(str(error.cause) if known else last_line(str(error))[:300])
    except RayError as error:
        return f"its worker died {MAX_RETRIES + 1} times: {one_line(last_line(str(error)))[:300]}"
    return ""


def train_and_test(job: GridJob) -> None:
    """Train a run from its checkpoint, test it, and test its prompts on the targets."""
    only_given_gpus()
    require_given_gpus("run")
    torch.set_num_threads(job.threads)
    run = job.run
    on_ray = partial(stream, options=StreamOptions.in_bundle(job.stream_cpus))
    if read_grid_result(run, job.folder).result is None:
        train_run(run.config, job.folder, objective=run.objective, stream=on_ray, wait_seconds=LOCK_SECONDS)
    tests = read_tests(job.folder)
    for target in run.targets:
        if target not in tests:
            dataset = open_dataset(target, run.config.data.root)
            accuracy = evaluate_on(trained(job.folder, trust_parts=True), dataset, on_ray)
            tests[target] = TargetTest(accuracy=accuracy, data=dataset.digest)
            write_tests(job.folder, tests)
