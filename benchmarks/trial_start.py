"""Seconds from passing a configuration to an actor to its first training step, by part.

    python benchmarks/trial_start.py [--trials 10] [--repeats 3] [--quick] [--json FILE]

Trains ProMetaR on `textures` with `mini`. `new actor` runs each trial in a new actor and includes the
start of its process. `reused actor` runs all trials in one actor, as a study does, and ignores the first
trial. The worker is `tune.execution.worker.JobWorker` with additional timers, in the placement group of
a trial. Each trial trains one epoch before the next trial starts. "Rest" is the remaining time, such as
closing the previous stream.
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


class TimedWorker(JobWorker):
    """A study's worker, outside of Ray Tune, that measures the time of each part."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}

    @ray.method
    def run(self, config: dict[str, Any], began: float) -> dict[str, float]:
        """Start a trial and train one epoch. Return seconds by part since `began` (time.time)."""
        from prometar.training import epoch
        from prometar.training.session import Session
        from tune.execution import training

        entered = time.time()
        self._spent = {"process": entered - began}
        build = training.build_run
        session = Session.resume_or_restart
        step = epoch.train_step
        with (
            patch.object(training, "build_run", self._clocked("build_run", build)),
            patch.object(Session, "resume_or_restart", self._clocked("session", session)),
            patch.object(epoch, "train_step", self._first_step(step)),
        ):
            self.reset_config(config)
            self.step()  # only says on which machine the trial runs
            self.step()
        spent = self._spent | {"total": self._stepped - began}
        return spent | {"rest": spent["total"] - sum(spent[name] for name in PARTS[:-1])}

    def _clocked(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def clocked(*args: Any, **kwargs: Any) -> Any:
            began = time.time()
            try:
                return function(*args, **kwargs)
            finally:
                self._built = time.time()
                self._spent[name] = self._built - began

        return clocked

    def _first_step(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*args: Any, **kwargs: Any) -> Any:
            if "first batch" not in self._spent:
                self._stepped = time.time()
                self._spent["first batch"] = self._stepped - self._built
            return function(*args, **kwargs)

        return stepped


def requests(folder: str, resources: JobResources, count: int) -> list[dict[str, Any]]:
    """Return requests for trials that differ in the weight of the text distance."""
    config = configure("prometar", {"train.seed": 0, "train.epochs": 5})
    found = []
    for k in range(count):
        run_dir = Path(folder) / f"{k:04d}"
        run_dir.mkdir()
        run = config.override({"regularizer.text_weight": 10.0 + k})
        job = Job(f"trial {k}", {run_dir: run}, "drift", 20, k)
        found.append({"request": JobRequest(job, resources, resources.bundles())})
    return found


def measure(kind: str, trials: int) -> Figures:
    """Return the seconds of each part, one value per trial."""
    from ray.actor import ActorHandle
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    start_ray(num_cpus=2)
    resources = JobResources(num_concurrent=1, max_concurrent=1, cpus=1.0, gpus=0.0)
    group = placement_group(resources.bundles())
    ray.get(group.ready())
    strategy = PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
    actor = ray.remote(TimedWorker).options(num_cpus=0.5, scheduling_strategy=strategy)
    rows: list[dict[str, float]] = []
    worker = None
    with TemporaryDirectory() as folder:
        for request in requests(folder, resources, trials + (kind == "reused actor")):
            began = time.time()
            worker = worker or actor.remote()
            rows.append(ray.get(worker.run.remote(request, began)))
            if kind == "new actor":
                assert isinstance(worker, ActorHandle)
                ray.kill(worker)
                worker = None
    ray.shutdown()
    counted = rows[1:] if kind == "reused actor" else rows
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
    rows = [
        (kind, *(median_of(side, name) for name in (*PARTS, "total")))
        for kind, side in zip(kinds, rounds, strict=True)
    ]
    print(table(("trial in", *(f"{name} s" for name in PARTS), "to first step s"), rows))
    write_json(args, rounds)
    return None


if __name__ == "__main__":
    main()
