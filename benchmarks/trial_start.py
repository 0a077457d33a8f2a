"""Seconds from passing a configuration to an actor to its first training step, by part.

    python benchmarks/trial_start.py [--trials 10] [--repeats 3] [--quick] [--json FILE]

Trains ProMetaR on `textures` with `mini`. `new actor` runs each trial in a new actor and includes the
start of its process. `reused actor` runs all trials in one actor, as a study does, and ignores the first
trial. The worker is `tune.execution.worker.JobWorker` with additional timers, in the placement group of
a trial. Each trial trains one epoch before the next trial starts.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import ray
from common import Figures, arguments, describe, in_turn, median_of, print_figures, table, write_json

from prometar.config.settings import configure
from tune.execution.job import Job
from tune.execution.ray_cluster import start_ray
from tune.execution.resources import JobResources
from tune.execution.worker import JobRequest, JobWorker

PARTS = ("process", "build_run", "session", "first batch", "rest")
"""Parts of a start, in the order in which they happen.

- process: until the actor receives the trial, which includes the start of a new actor.
- build_run: open the dataset, the backbone and the method.
- session: create the learned tensors, or read a checkpoint.
- first batch: from then to the first training step, mostly waiting for images.
- rest: what is left of the total, such as closing the stream of the previous trial.
"""


class TimedWorker(JobWorker):
    """A study's worker, outside of Ray Tune, that measures the time of each part."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}  # seconds by part
        self._ready = 0.0  # when `build_run` or the session ended, whichever was later (time.time)
        self._stepped = 0.0  # when the first training step began

    @ray.method
    def run(self, config: dict[str, Any], began: float) -> dict[str, float]:
        """Start a trial and train one epoch. Return seconds by part since `began` (time.time)."""
        from prometar.training import epoch
        from prometar.training.session import Session
        from tune.execution import training

        entered = time.time()
        self._spent = {"process": entered - began}
        build_run = training.build_run
        resume_or_restart = Session.resume_or_restart
        train_step = epoch.train_step
        with (
            patch.object(training, "build_run", self._timed("build_run", build_run)),
            patch.object(Session, "resume_or_restart", self._timed("session", resume_or_restart)),
            patch.object(epoch, "train_step", self._first_step_timed(train_step)),
        ):
            self.reset_config(config)
            self.step()  # only says on which machine the trial runs
            self.step()
        total = self._stepped - began
        rest = total - sum(self._spent.values())
        return {**self._spent, "rest": rest, "total": total}

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with a timer. Its time is that of a part."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.time()
            try:
                return function(*args, **kwargs)
            finally:
                self._ready = time.time()
                self._spent[part] = self._ready - began

        return timed

    def _first_step_timed(self, train_step: Callable[..., Any]) -> Callable[..., Any]:
        """Return the training step. Its first call ends the part `first batch`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if "first batch" not in self._spent:
                self._stepped = time.time()
                self._spent["first batch"] = self._stepped - self._ready
            return train_step(*args, **kwargs)

        return timed


def requests(folder: str, resources: JobResources, count: int) -> list[dict[str, Any]]:
    """Return the configurations that Ray Tune would pass to the actor of each trial.

    Trials differ in the weight of the text distance.
    """
    config = configure("prometar", {"train.seed": 0, "train.epochs": 5})
    passed = []
    for number in range(count):
        run_folder = Path(folder) / f"{number:04d}"
        run_folder.mkdir()
        run_config = config.override({"regularizer.text_weight": 10.0 + number})
        job = Job(f"trial {number}", {run_folder: run_config}, "drift", 20, number)
        passed.append({"request": JobRequest(job, resources, resources.bundles())})
    return passed


def measure(kind: str, trials: int) -> Figures:
    """Return the seconds of each part, one value per trial.

    Args:
        kind: "new actor" or "reused actor".
        trials: Number of trials. A reused actor trains one more before them, which is not counted.
    """
    from ray.actor import ActorHandle
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    start_ray(num_cpus=2)
    resources = JobResources(num_concurrent=1, max_concurrent=1, cpus=1.0, gpus=0.0)
    group = placement_group(resources.bundles())
    ray.get(group.ready())
    strategy = PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
    actor = ray.remote(TimedWorker).options(num_cpus=0.5, scheduling_strategy=strategy)
    is_reused = kind == "reused actor"
    num_uncounted = 1 if is_reused else 0
    rows: list[dict[str, float]] = []
    worker = None
    with TemporaryDirectory() as folder:
        for request in requests(folder, resources, num_uncounted + trials):
            began = time.time()
            if worker is None:
                worker = actor.remote()
            rows.append(ray.get(worker.run.remote(request, began)))
            if not is_reused:
                assert isinstance(worker, ActorHandle)
                ray.kill(worker)
                worker = None
    ray.shutdown()
    counted = rows[num_uncounted:]
    return {name: [row[name] for row in counted] for name in (*PARTS, "total")}


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--trials", type=int, default=10, help="trials in the reused actor")

    args = arguments(__doc__, add, repeats=3)
    if args.side:
        return print_figures(measure(**args.side))
    if args.quick:
        args.repeats = 1
        args.trials = 2
    kinds = {"new actor": min(2, args.trials), "reused actor": args.trials}
    rounds = in_turn([{"kind": kind, "trials": count} for kind, count in kinds.items()], args)
    print(describe(1))
    rows = []
    for kind, seconds in zip(kinds, rounds, strict=True):
        medians = [median_of(seconds, name) for name in (*PARTS, "total")]
        rows.append((kind, *medians))
    print(table(("trial in", *(f"{name} s" for name in PARTS), "to first step s"), rows))
    write_json(args, rounds)
    return None


if __name__ == "__main__":
    main()
