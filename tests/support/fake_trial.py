"""A worker that does not train: `JobWorker` over a formula, in milliseconds.

The study's folder may hold behaviour.json, {"3": "fail", "5": "crash", "all": {...}}, which makes the job in
folder 0003 or 0005 misbehave. So tests in other processes and Ray's workers are steered by plain data.
"""

import contextlib
import json
import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from prometar.config.settings import Config, dump_config
from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.exclusions import read_exclusions
from prometar.errors import InfrastructureError
from prometar.io.files import write_atomically
from prometar.training.run_result import RunResult
from tune.execution.job import Job
from tune.execution.worker import JobRequest, JobWorker
from tune.records.schema import REPORT_ADAPTER, EpochReport, RunScore

BEHAVIOUR = "behaviour.json"
MOUNT = "PROMETAR_TEST_MOUNT"
"""Environment variable of a node. "missing": the node has no data for jobs that read data."""
HANGS = "hangs"
"""In the folder of a job that was told to hang, from then on: the worker's process id."""


def curve(text: float, image: float, epoch: int) -> float:
    """An objective in percent: highest at text_weight 5, image_weight 2; rises with the epochs."""
    loss = math.log10(text / 5) ** 2 + math.log10(image / 2) ** 2
    return 70.0 - 10.0 * loss - 5.0 / epoch


def value_of(run: Config, epoch: int) -> float:
    """The objective of a run. It differs by seed, and better settings are better with every seed."""
    settings = run.flat()
    text, image = (float(settings.get(f"regularizer.{key}_weight", 10.0)) for key in ("text", "image"))
    return curve(text, image, epoch) + run.train.seed % 7 * 0.25


class FakeTrial(JobWorker):
    """The study's worker, with jobs that do not train."""

    def open_training(self, request: JobRequest) -> "FakeTraining":  # type: ignore[override]
        return FakeTraining(request)


class FakeTraining:
    """One step is one epoch. Its state lies in the job's folder, as a checkpoint does."""

    def __init__(self, request: JobRequest) -> None:
        self._request = request
        self._job = request.job
        self._folder = request.job.folder
        state = self._folder / "state.json"
        found = json.loads(state.read_text()) if state.exists() else {}
        self._owner = [run.model_dump(mode="json") for run in self._job.configs.values()]
        done = found["done"] if found.get("owner") == self._owner else []  # not another configuration's
        self._done = [REPORT_ADAPTER.validate_python(each, strict=False) for each in done]
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
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        if behaviour == "reads-data":
            self._read_data()
        if behaviour == "raise":
            raise RuntimeError("the disk is made of cheese")
        if behaviour == "full":
            raise InfrastructureError(f"cannot write {self._folder}: No space left on device")
        if behaviour == "fail":
            return EpochReport(epoch=epoch, error="loss is nan in step 7", finished=True)
        report = EpochReport(
            epoch=epoch,
            runs=tuple(self._score(run, epoch, behaviour) for run in self._job.configs.values()),
            loss=1.0 / epoch,
            finished=epoch == self._job.epochs,
        )
        self._done.append(report)
        done = [REPORT_ADAPTER.dump_python(each, mode="json") for each in self._done]
        state = {"owner": self._owner, "done": done}
        write_atomically(self._folder / "state.json", json.dumps(state).encode())
        with (self._folder / "steps.log").open("a") as log:
            log.write(f"{epoch}\n")
        return self._reported(report)

    def _score(self, run: Config, epoch: int, behaviour: str) -> RunScore:
        value = 1.0 + epoch if behaviour == "bad" else value_of(run, epoch)
        score = RunScore(
            run.data.name, run.train.seed, value + 2, value - 2, value, 0.5 * epoch, **self._request.allocated
        )
        return replace(score, objective=None) if behaviour == "missing" else score

    @property
    def _share(self) -> float:
        """GPUs, or else CPUs, of the trainer's bundle, as Ray allocated them."""
        import ray

        bundle = ray.util.get_current_placement_group().bundle_specs[0]
        return float(bundle.get("GPU") or bundle["CPU"])

    def _read_data(self) -> None:
        """On a node without data, fail. On others, wait until such a node has had its turn."""
        tried = self._folder.parents[1] / "a-node-without-data-was-tried"
        if os.environ.get(MOUNT) == "missing":
            from tune.execution.training import _require_inputs  # loads torch

            tried.touch()
            _require_inputs(Config().override({"data.name": "folder", "data.root": "/not-mounted"}))
        deadline = time.monotonic() + 120
        while not tried.exists() and time.monotonic() < deadline:
            time.sleep(0.02)

    def _hang(self) -> None:
        """Until it is killed, or told to behave in another way."""
        write_atomically(self._folder / HANGS, str(os.getpid()).encode())
        while self._behaviour() == "hang":
            time.sleep(0.02)

    def _reported(self, report: EpochReport) -> EpochReport:
        # As in real training: a worker killed after its last checkpoint may not have written the result.
        if report.finished:
            for folder, run in self._job.configs.items():
                last = {"objective": value_of(run, self._job.epochs), "base": 1.0, "new": 1.0}
                write_result(
                    folder, run, self._job.objective, {**last, "seconds": 1.5}, **self._request.allocated
                )
        return report


def write_result(
    folder: Path, run: Config, objective: str, *records: dict[str, float], **resources: float
) -> None:
    """Write what a finished run leaves in its folder.

    Args:
        records: Figures by epoch.
    """
    excluded = read_exclusions(run.data.root) if run.data.name == "folder" and run.data.root else {}
    data_digest, weights_digest = _digests_of_untrained(run)
    result = RunResult(
        last_epoch=records[-1],
        accuracies={"base": 50.0, "new": 50.0},
        images={"base": 1},
        history=records,
        objective=objective,
        classnames=(),
        template="",
        run_digest="",
        data_digest=data_digest,
        weights_digest=weights_digest,
        environment={},
        excluded=tuple(sorted(excluded)),
        **resources,
    )
    write_atomically(folder / "config.yaml", dump_config(run).encode())
    result.write(folder)


def _digests_of_untrained(run: Config) -> tuple[str, str]:
    """Return the digests of data and weights if `reproduce --tune` compares them in result.json."""
    if not run.method.startswith("zero-shot"):
        return "", ""
    from prometar.clip.openclip import load_backbone
    from prometar.clip.weights import weights_digest

    clip = load_backbone(run.backbone.name, run.backbone.pretrained).clip
    return open_dataset(run.data.name, run.data.root).digest, weights_digest(clip)


def fake_job(folder: Path, number: int, *, epochs: int = 3) -> Job:
    """A job of one run in FOLDER/trials/NNNN."""
    run = Config().override({"train.epochs": epochs, "train.seed": 0})
    return Job(f"trial {number}", {folder / f"trials/{number:04d}": run}, "drift", 20, number)


def misbehave(folder: Path, behaviour: dict[str, str]) -> None:
    """Tell the jobs below a folder how to behave."""
    write_atomically(folder / BEHAVIOUR, json.dumps(behaviour).encode())
