"""A trial without training: the same contract as `tune.trial.TrialWorker`, over a formula, in milliseconds.

A study's folder may hold behaviour.json, {"3": "nan", "5": "crash", "all": {...}}, which makes trial 3 or 5
misbehave; so tests in other processes and Ray's workers are steered by plain data.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from ray import tune

from prometar.checkpoint import write_atomically
from tune.job import unpack

BEHAVIOUR = "behaviour.json"


def curve(settings: dict[str, Any], epoch: int) -> float:
    """An objective in percent: highest at text_weight 5, image_weight 2; rises with the epochs."""
    text = float(settings.get("regularizer.text_weight", 50.0))
    image = float(settings.get("regularizer.image_weight", 20.0))
    loss = math.log10(text / 5) ** 2 + math.log10(image / 2) ** 2
    return 70.0 - 10.0 * loss - 5.0 / epoch


class FakeTrial(tune.Trainable):
    """One step is one epoch; its state lies in the job's folder, and a finished one repeats its result."""

    def setup(self, config: dict[str, Any]) -> None:
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._start(new_config)
        return True

    def _start(self, config: dict[str, Any]) -> None:
        (self._job,) = unpack(config)
        self._folder = Path(self._job.run_dir)
        self._epochs = int(self._job.config["train"]["epochs"])
        state = self._folder / "state.json"
        self._done: list[dict[str, Any]] = json.loads(state.read_text()) if state.exists() else []

    def _behaviour(self) -> str:
        path = self._folder.parents[1] / BEHAVIOUR
        table = json.loads(path.read_text()) if path.exists() else {}
        name = self._folder.name
        return str(table.get(name.lstrip("0") or "0", table.get("all", "")))

    def step(self) -> dict[str, Any]:
        if len(self._done) == self._epochs:
            return {**self._done[-1], "finished": True, "done": True}
        behaviour, epoch = self._behaviour(), len(self._done) + 1
        if behaviour.startswith("sleep"):
            time.sleep(float(behaviour.removeprefix("sleep")))
        if behaviour == "crash" and epoch == 2 and not (self._folder / "crashed").exists():
            (self._folder / "crashed").touch()
            os._exit(1)
        if behaviour == "crash-always" and epoch == 2:
            os._exit(1)
        if behaviour == "raise":
            raise RuntimeError("the disk is made of cheese")
        if behaviour == "fail":
            return {
                "epoch": epoch,
                "failed": f"the loss is nan in step 7, with {self._job.settings}",
                "finished": True,
                "done": True,
            }
        result = self._result(epoch)
        if behaviour == "nan":
            result["objective"] = math.nan
        if behaviour == "missing":
            del result["objective"]
        if behaviour == "bad":
            result["objective"] = 1.0 + epoch
        self._done.append(result)
        write_atomically(self._folder / "state.json", json.dumps(self._done).encode())
        with (self._folder / "steps.log").open("a") as log:
            log.write(f"{epoch}\n")
        if result["done"]:
            content = {"result": result, "history": self._done}
            write_atomically(self._folder / "result.json", json.dumps(content).encode())
        return result

    def _result(self, epoch: int) -> dict[str, Any]:
        value = curve(self._job.settings, epoch)
        # Final runs differ by seed, and in pairs: better settings are better with every seed.
        value += self._job.config["train"]["seed"] * 0.25 if self._job.objective == "final" else 0.0
        return {
            "epoch": epoch,
            "objective": value,
            "base": value + 2,
            "new": value - 2,
            "loss": 1.0 / epoch,
            "seconds": 0.5 * epoch,
            "failed": "",
            "finished": epoch == self._epochs,
            "done": epoch == self._epochs,
        }
