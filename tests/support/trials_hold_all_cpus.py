"""Run by test_raystream: trials that hold every CPU (two of 0.5 + 0.5, one of 1 + 1) and stream.

Each evaluates in the middle of its training, as runs do: a second stream while the first one waits.

Usage: python trials_hold_all_cpus.py DATA_ROOT OUT ADDRESS, of a Ray of two CPUs.
"""

import hashlib
import json
import logging
import sys
import time
import warnings
from typing import Any

import ray
from ray import tune

from prometar.data.datasets.catalog import open_dataset
from prometar.data.streaming.plan import Plan, eval_plan
from prometar.data.streaming.raystream import stream
from prometar.data.streaming.stream import StreamOptions, stream_local
from prometar.data.streaming.transforms import TransformSpec


def plan_of(root: str) -> tuple[Plan, Any]:
    dataset = open_dataset("dtd", root)
    return Plan(dataset.train, TransformSpec(32, train=True), batch_size=4, epochs=8, seed=1), dataset.source


def digest(batches: Any) -> str:
    state = hashlib.sha256()
    for batch in batches:
        state.update(batch.images.tobytes() + batch.labels.tobytes())
    return state.hexdigest()


class Trial(tune.Trainable):
    """One step streams the plan's epochs."""

    def setup(self, config: dict[str, Any]) -> None:
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.settings = new_config
        return True

    def step(self) -> dict[str, Any]:
        started = time.perf_counter()
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="ray.data.context")
        plan, source = plan_of(self.settings["root"])
        cpus = self.settings["cpus"]
        options = StreamOptions(num_cpus=cpus, block_rows=16, memory_bytes=1)
        training = stream(plan, source, options=options)
        batches = [next(training)]
        first = time.perf_counter() - started
        time.sleep(1)  # the training stream fills its buffers
        evaluation = stream(eval_plan(plan.items, size=32), source, options=options)
        evaluated = sum(len(batch.labels) for batch in evaluation)
        batches += training
        return {"pixels": digest(batches), "first": first, "evaluated": evaluated, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        pass

    def load_checkpoint(self, checkpoint: Any) -> None:
        pass


def fit(root: str, out: str, *, cpus: float, trials: int, concurrent: int) -> dict[str, Any]:
    """Trials of two bundles of `cpus` each, which together hold the two CPUs there are."""
    group = tune.PlacementGroupFactory([{"CPU": cpus}, {"CPU": cpus}])
    results = tune.Tuner(
        tune.with_resources(Trial, group),
        param_space={"trial": tune.grid_search(list(range(trials))), "root": root, "cpus": cpus},
        tune_config=tune.TuneConfig(max_concurrent_trials=concurrent, reuse_actors=True),
        run_config=tune.RunConfig(storage_path=out, verbose=0),
    ).fit()
    metrics = [result.metrics or {} for result in results]
    want = digest(stream_local(*plan_of(root)))
    return {
        "errors": [str(error) for error in results.errors],
        "equal": [m.get("pixels") == want for m in metrics],
        "evaluated": [m.get("evaluated") for m in metrics],
        "first": [round(m.get("first", -1.0), 2) for m in metrics],
    }


def main(root: str, out: str, address: str) -> None:
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    halves = fit(root, out, cpus=0.5, trials=3, concurrent=2)
    wholes = fit(root, out, cpus=1, trials=1, concurrent=1)
    print(json.dumps({"halves": halves, "wholes": wholes}))
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
