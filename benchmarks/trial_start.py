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
        # Moments, as time.time().
        self._part_ended = 0.0  # end of the latest part that `_timed` measured
        self._first_step_began = 0.0

    @ray.method
    def run(self, config: dict[str, Any], began: float) -> dict[str, float]:
        """Start a trial and train one epoch.

        Args:
            config: Configuration that Ray Tune would pass to the actor.
            began: Moment when the driver started the trial, as time.time().

        Returns:
            Seconds by part, and in `total` the seconds from `began` to the first training step.
        """
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
            self.step()  # the first report only names the machine of the trial
            self.step()
        total = self._first_step_began - began
        rest = total - sum(self._spent.values())
        return {**self._spent, "rest": rest, "total": total}

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that also records the duration of `function` as that of a part."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.time()
            try:
                return function(*args, **kwargs)
            finally:
                self._part_ended = time.time()
                self._spent[part] = self._part_ended - began

        return timed

    def _first_step_timed(self, train_step: Callable[..., Any]) -> Callable[..., Any]:
        """Return the training step. Its first call ends the part `first batch`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if "first batch" not in self._spent:
                self._first_step_began = time.time()
                self._spent["first batch"] = self._first_step_began - self._part_ended
            return train_step(*args, **kwargs)

        return timed


def configs_of_trials(folder: str, resources: JobResources, count: int) -> list[dict[str, Any]]:
    """Return the configurations that Ray Tune would pass to the actor of each trial.

    Trials differ in the weight of the text distance.

    Args:
        folder: Folder in which each trial gets a folder for its files.
        resources: Resources of each trial.
        count: Number of trials.
    """
    config = configure("prometar", {"train.seed": 0, "train.epochs": 5})
    configs = []
    for number in range(count):
        run_folder = Path(folder) / f"{number:04d}"
        run_folder.mkdir()
        run_config = config.override({"regularizer.text_weight": 10.0 + number})
        job = Job(
            f"trial {number}",
            {run_folder: run_config},
            objective="drift",
            val_per_class=20,
            trial_number=number,
        )
        configs.append({"request": JobRequest(job, resources, resources.bundles())})
    return configs


def actor_class(resources: JobResources) -> Any:
    """Return `TimedWorker` as a class of actors in the placement group of a trial."""
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group(resources.bundles())
    ray.get(group.ready())
    strategy = PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)
    return ray.remote(TimedWorker).options(num_cpus=0.5, scheduling_strategy=strategy)


def measure(kind: str, trials: int) -> Figures:
    """Return the seconds of each part, one value per trial.

    Args:
        kind: "new actor" or "reused actor".
        trials: Number of trials. A reused actor trains one more before them, which is not counted.
    """
    from ray.actor import ActorHandle

    start_ray(num_cpus=2)
    resources = JobResources(num_concurrent=1, max_concurrent=1, cpus=1.0, gpus=0.0)
    actors = actor_class(resources)
    is_reused = kind == "reused actor"
    num_uncounted = 1 if is_reused else 0

    seconds_of_trials: list[dict[str, float]] = []
    worker = None
    with TemporaryDirectory() as folder:
        for config in configs_of_trials(folder, resources, num_uncounted + trials):
            began = time.time()
            if worker is None:
                worker = actors.remote()
            seconds_of_trials.append(ray.get(worker.run.remote(config, began)))
            if not is_reused:
                assert isinstance(worker, ActorHandle)
                ray.kill(worker)
                worker = None
    ray.shutdown()

    counted = seconds_of_trials[num_uncounted:]
    return {name: [seconds[name] for seconds in counted] for name in (*PARTS, "total")}


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--trials", type=int, default=10, help="trials in the reused actor")

    args = arguments(__doc__, add, repeats=3)
    if args.side:
        return print_figures(measure(**args.side))
    if args.quick:
        args.repeats = 1
        args.trials = 2
    # Two trials in new actors, because each start of a process takes seconds.
    num_trials = {"new actor": min(2, args.trials), "reused actor": args.trials}
    sides = [{"kind": kind, "trials": count} for kind, count in num_trials.items()]
    rounds = in_turn(sides, args)
    print(describe(1))
    rows = []
    for kind, seconds in zip(num_trials, rounds, strict=True):
        medians = [median_of(seconds, name) for name in (*PARTS, "total")]
        rows.append((kind, *medians))
    print(table(("trial in", *(f"{name} s" for name in PARTS), "to first step s"), rows))
    write_json(args, rounds)
    return None


if __name__ == "__main__":
    main()
