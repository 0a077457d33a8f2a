"""A worker that does not train: `TrialWorker` over a formula, in milliseconds.

The study's folder may hold behaviour.json, {"3": "nan", "5": "crash", "all": {...}}, which makes the job in
folder 0003 or 0005 misbehave. So tests in other processes and Ray's workers are steered by plain data.
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

from prometar.errors import StorageError
from prometar.io.files import write_atomically
from prometar.training.run_result import RunResult
from tune.execution.jobs import EpochReport, Job, RunSpec
from tune.execution.worker import Task, TrialWorker

BEHAVIOUR = "behaviour.json"
HANGS = "hangs"
"""In the folder of a job that was told to hang, from then on: the worker's process id."""


def curve(text: float, image: float, epoch: int) -> float:
    """An objective in percent: highest at text_weight 5, image_weight 2; rises with the epochs."""
    loss = math.log10(text / 5) ** 2 + math.log10(image / 2) ** 2
    return 70.0 - 10.0 * loss - 5.0 / epoch


def value_of(run: RunSpec, epoch: int) -> float:
    """The objective of a run. It differs by seed, and better settings are better with every seed."""
    settings = run.config.get("regularizer", {})
    text, image = (float(settings.get(key, 10.0)) for key in ("text_weight", "image_weight"))
    return curve(text, image, epoch) + run.seed % 7 * 0.25


class FakeTrial(TrialWorker):
    """The study's worker, with jobs that do not train."""

    def open_training(self, task: Task) -> "FakeTraining":
        return FakeTraining(task)


class FakeTraining:
    """One step is one epoch. Its state lies in the job's folder, as a checkpoint does."""

    def __init__(self, task: Task) -> None:
        self._task, self._job, self._folder = task, task.job, task.folder
        state = self._folder / "state.json"
        found = json.loads(state.read_text()) if state.exists() else {}
        self._owner = [run.config for run in self._job.runs]  # else it is another configuration's
        self._done: list[EpochReport] = found["done"] if found.get("owner") == self._owner else []
        self._epoch = 0

    def close(self) -> None:
        """Nothing is open."""

    def _behaviour(self) -> str:
        table = {}
        with contextlib.suppress(FileNotFoundError):
            table = json.loads((self._folder.parents[1] / BEHAVIOUR).read_text())
        name = self._folder.name
        return str(table.get(name.lstrip("0") or "0", table.get("all", "")))

    def advance(self) -> EpochReport:
        # Here: Tune may set up a second worker of a job, and drop it before it has done anything.
        write_atomically(self._folder / "pid", str(os.getpid()).encode())  # whole for who looks meanwhile
        self._epoch = epoch = self._epoch + 1
        if epoch <= len(self._done):
            return self._reported(self._done[epoch - 1])
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
        if behaviour.startswith("needs") and self._share < float(behaviour.removeprefix("needs")):
            with (self._folder / "shares.log").open("a") as log:
                log.write(f"{self._share:g}\n")
            # A driver goes by the words; torch itself would take longer to load than all else here.
            raise RuntimeError("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.")
        if behaviour == "raise":
            raise RuntimeError("the disk is made of cheese")
        if behaviour == "full":
            raise StorageError(f"cannot write {self._folder}: No space left on device")
        if behaviour == "fail":
            return EpochReport(epoch=epoch, failed="loss is nan in step 7", finished=True)
        report = self._report(epoch)
        if behaviour == "nan":
            report["objective"] = math.nan
        if behaviour == "missing":
            del report["objective"]
        if behaviour == "bad":
            report["objective"] = 1.0 + epoch
        self._done.append(report)
        state = {"owner": self._owner, "done": self._done}
        write_atomically(self._folder / "state.json", json.dumps(state).encode())
        with (self._folder / "steps.log").open("a") as log:
            log.write(f"{epoch}\n")
        return self._reported(report)

    @property
    def _share(self) -> float:
        """GPUs, or else CPUs, of the trainer's bundle, as Ray allocated them."""
        import ray

        bundle = ray.util.get_current_placement_group().bundle_specs[0]
        return float(bundle.get("GPU") or bundle["CPU"])

    def _hang(self) -> None:
        """Until it is killed, or told to behave in another way."""
        write_atomically(self._folder / HANGS, str(os.getpid()).encode())
        while self._behaviour() == "hang":
            time.sleep(0.02)

    def _reported(self, report: EpochReport) -> EpochReport:
        # As in real training: a worker killed after its last checkpoint may not have written the result.
        if report["finished"]:
            for run in self._job.runs:
                records = [
                    {k: v for k, v in done.items() if isinstance(v, float) and math.isfinite(v)}
                    for done in self._done
                ]
                records.append(records.pop() | {"objective": value_of(run, self._job.epochs)})
                write_result(run, self._job.objective, *records, **self._task.resources)
        return report

    def _report(self, epoch: int) -> EpochReport:
        values = [value_of(run, epoch) for run in self._job.runs]
        value = sum(values) / len(values)
        return EpochReport(
            epoch=epoch,
            objective=value,
            base=value + 2,
            new=value - 2,
            loss=1.0 / epoch,
            seconds=0.5 * epoch,
            runs=[
                {"dataset": run.dataset, "seed": run.seed, "objective": each, "base": each + 2,
                 "new": each - 2, "seconds": 0.5 * epoch}
                for run, each in zip(self._job.runs, values, strict=True)
            ],
            finished=epoch == self._job.epochs,
        )  # fmt: skip


def write_result(run: RunSpec, objective: str, *records: dict[str, Any], **resources: float) -> None:
    """Write what a finished run leaves in its folder.

    Args:
        records: Figures by epoch.
    """
    result = RunResult(
        result=records[-1], accuracies={"base": 50.0}, images={"base": 1}, history=records,
        objective=objective, classnames=(), template="", run="", data="", weights="", environment={},
        **resources,
    )  # fmt: skip
    write_atomically(Path(run.folder) / "config.yaml", yaml.safe_dump(run.config).encode())
    result.write(Path(run.folder))


def fake_job(folder: Path, number: int, *, epochs: int = 3, **settings: Any) -> Job:
    """A job of one run in FOLDER/trials/NNNN."""
    config = {
        "data": {"name": "textures"}, "train": {"seed": 0, "epochs": epochs}, "regularizer": settings
    }  # fmt: skip
    run = RunSpec(config, str(folder / f"trials/{number:04d}"))
    return Job(f"trial {number}", (run,), "drift", 20, number)


def misbehave(folder: Path, behaviour: dict[str, str]) -> None:
    """Tell the jobs below a folder how to behave."""
    write_atomically(folder / BEHAVIOUR, json.dumps(behaviour).encode())
