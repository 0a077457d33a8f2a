"""A trial without training: `tune.worker.trainable.TrialWorker` over a formula, in milliseconds.

A study's folder may hold behaviour.json, {"3": "nan", "5": "crash", "all": {...}}, which makes trial 3 or 5
misbehave; so tests in other processes and Ray's workers are steered by plain data.
"""

import contextlib
import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import yaml

from prometar.io.files import write_atomically
from prometar.training.run_result import RunResult
from tune.jobs.spec import Job
from tune.worker.trainable import TrialWorker

BEHAVIOUR = "behaviour.json"
HANGS = "hangs"
"""In the folder of a trial that was told to hang, from then on: the worker's process id."""


def curve(settings: dict[str, Any], epoch: int) -> float:
    """An objective in percent: highest at text_weight 5, image_weight 2; rises with the epochs."""
    text = float(settings.get("regularizer.text_weight", 50.0))
    image = float(settings.get("regularizer.image_weight", 20.0))
    loss = math.log10(text / 5) ** 2 + math.log10(image / 2) ** 2
    return 70.0 - 10.0 * loss - 5.0 / epoch


class FakeTrial(TrialWorker):
    """The study's worker, with jobs that do not train."""

    def open_crew(self, jobs: list[Job], failure: str) -> Any:
        (job,) = jobs
        return FakeCrew(job, failure)


class FakeCrew:
    """One step is one epoch; its state lies in the job's folder, and what is found there is told again."""

    def __init__(self, job: Job, failure: str) -> None:
        self._job, self._failure, self._folder = job, failure, Path(job.run_dir)
        self._folder.mkdir(parents=True, exist_ok=True)
        state = self._folder / "state.json"
        found = json.loads(state.read_text()) if state.exists() else {}
        of_these = found.get("settings") == job.settings  # else it is another configuration's
        self._done: list[dict[str, Any]] = found["done"] if of_these else []
        self._num_told = 0
        self.over = False

    def close(self) -> None:
        """Nothing is open."""

    def advance(self) -> list[dict[str, Any]]:
        result = self._advance()
        self.over = bool(result.get("finished"))
        return [result]

    def _behaviour(self) -> str:
        table = {}
        with contextlib.suppress(FileNotFoundError):
            table = json.loads((self._folder.parents[1] / BEHAVIOUR).read_text())
        name = self._folder.name
        return str(table.get(name.lstrip("0") or "0", table.get("all", "")))

    def _advance(self) -> dict[str, Any]:
        # Here: Tune may set up a second worker of a trial, and drop it before it has done anything.
        write_atomically(self._folder / "pid", str(os.getpid()).encode())  # whole for who looks meanwhile
        self._num_told = epoch = self._num_told + 1
        if self._failure:
            return self._failed(epoch, self._failure)
        if epoch <= len(self._done):
            return self._told(self._done[epoch - 1])
        behaviour = self._behaviour()
        if behaviour.startswith("sleep"):
            time.sleep(float(behaviour.removeprefix("sleep")))
        if behaviour == "crash" and epoch == 2 and not (self._folder / "crashed").exists():
            (self._folder / "crashed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if behaviour == "crash-always" and epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if behaviour == "hang" and epoch == 2:
            self._hang()
        if behaviour.startswith("needs") and _share() < float(behaviour.removeprefix("needs")):
            with (self._folder / "shares.log").open("a") as log:
                log.write(f"{_share():g}\n")
            # A driver goes by the words; torch itself would take longer to load than all else here.
            raise RuntimeError("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.")
        if behaviour == "raise":
            raise RuntimeError("the disk is made of cheese")
        if behaviour == "fail":
            return self._failed(epoch, f"the loss is nan in step 7, with {self._job.settings}")
        result = self._result(epoch)
        if behaviour == "nan":
            result["objective"] = math.nan
        if behaviour == "missing":
            del result["objective"]
        if behaviour == "memory":
            result["memory"] = [5 * 2**30, 24 * 2**30]
        if behaviour == "bad":
            result["objective"] = 1.0 + epoch
        self._done.append(result)
        state = {"settings": self._job.settings, "done": self._done}
        write_atomically(self._folder / "state.json", json.dumps(state).encode())
        with (self._folder / "steps.log").open("a") as log:
            log.write(f"{epoch}\n")
        return self._told(result)

    def _hang(self) -> None:
        """Until it is killed, or told to behave in another way."""
        write_atomically(self._folder / HANGS, str(os.getpid()).encode())
        while self._behaviour() == "hang":
            time.sleep(0.02)

    def _told(self, result: dict[str, Any]) -> dict[str, Any]:
        # As the real crew: a worker killed after its last epoch was kept may not have written the result.
        if result["finished"]:
            self._conclude()
        return result

    def _failed(self, epoch: int, reason: str) -> dict[str, Any]:
        return {"epoch": epoch, "failed": reason, "finished": True}

    def _conclude(self) -> None:
        for leg in self._job.legs:
            value = self._value(self._job.epochs, leg.name["seed"])
            records = [
                {k: v for k, v in done.items() if isinstance(v, float) and math.isfinite(v)}
                for done in self._done
            ]
            result = RunResult(
                result=records[-1] | {"objective": value}, accuracies={"base": 50.0}, images={"base": 1},
                history=tuple(records), objective=self._job.objective, classnames=(), template="", run="",
                data="", weights="", environment={},
                cpus=self._job.terms.plan.cpus_per_trial, gpus=self._job.terms.plan.gpus_per_trial,
            )  # fmt: skip
            config = yaml.safe_dump(leg.config).encode()
            write_atomically(self._folder / leg.folder / "config.yaml", config)
            result.write(self._folder / leg.folder)

    def _value(self, epoch: int, seed: int) -> float:
        # Runs differ by seed, and in pairs: better settings are better with every seed.
        return curve(self._job.settings, epoch) + seed % 7 * 0.25

    def _result(self, epoch: int) -> dict[str, Any]:
        seeds = [leg.name["seed"] for leg in self._job.legs]
        value = sum(self._value(epoch, seed) for seed in seeds) / len(seeds)
        return {
            "epoch": epoch,
            "objective": value,
            "base": value + 2,
            "new": value - 2,
            "loss": 1.0 / epoch,
            "seconds": 0.5 * epoch,
            "failed": "",
            "finished": epoch == self._job.epochs,
        }


def _share() -> float:
    """CPUs of this worker's own bundle."""
    import ray

    return float(ray.util.get_current_placement_group().bundle_specs[0]["CPU"])
