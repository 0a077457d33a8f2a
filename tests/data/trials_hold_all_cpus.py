"""Run by test_stream_ray: three trials, two at a time, that hold every CPU and stream; prints one JSON line.

Each evaluates in the middle of its training, as runs do: a second stream while the first one waits.

Usage: python trials_hold_all_cpus.py DATA_ROOT OUT CPUS_PER_TRIAL (half of them for the stream).
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
import warnings
from typing import Any

import ray
from ray import tune

from prometar.data.catalog import open_dataset
from prometar.data.plan import Plan, eval_plan
from prometar.data.stream import StreamOptions, stream, stream_local
from prometar.data.transforms import TransformSpec


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
        options = StreamOptions(num_cpus=cpus, block_rows=16, in_placement_group=True, memory_bytes=1)
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


def main(root: str, out: str, cpus_per_trial: float) -> None:
    half = cpus_per_trial / 2
    ray.init(
        num_cpus=round(2 * cpus_per_trial),
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    group = tune.PlacementGroupFactory([{"CPU": half}, {"CPU": half}])
    results = tune.Tuner(
        tune.with_resources(Trial, group),
        param_space={"trial": tune.grid_search([0, 1, 2]), "root": root, "cpus": half},
        tune_config=tune.TuneConfig(max_concurrent_trials=2, reuse_actors=True),
        run_config=tune.RunConfig(storage_path=out, verbose=0),
    ).fit()
    metrics = [result.metrics or {} for result in results]
    want = digest(stream_local(*plan_of(root)))
    print(
        json.dumps(
            {
                "errors": len(results.errors),
                "equal": [m.get("pixels") == want for m in metrics],
                "evaluated": [m.get("evaluated") for m in metrics],
                "first": [round(m.get("first", -1.0), 2) for m in metrics],
            }
        )
    )
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
