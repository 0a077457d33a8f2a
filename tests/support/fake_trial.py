"""A worker that does not train. Its objective is a formula, so that an epoch takes milliseconds.

The file behaviour.json in the study's folder makes jobs misbehave, also in Ray's workers. With
{"3": "fail", "all": "sleep0.2"}, the job in the folder 0003 fails, and each other job sleeps 0.2 s per epoch.

| behaviour | what the job does |
|---|---|
| sleepN | sleeps N seconds per epoch |
| fail | reports a loss that is not finite |
| raise | raises an error in its own code |
| full | raises the error of a full disk |
| needsN | runs out of memory if it has less than N of a GPU, or less than N CPUs without a GPU |
| reads-data | fails on a node without data |
| crash | kills its worker in epoch 2, once |
| crash-always | kills its worker in epoch 2, each time |
| hang | hangs in epoch 2 until the behaviour changes |
| bad | has a very low objective |
| missing | has no objective |
"""

import contextlib
import json
import math
import os
import signal
import time
from collections.abc import Iterable
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
"""File in the folder of a job that hangs, with the process id of its worker."""


def curve(text_weight: float, image_weight: float, epoch: int) -> float:
    """Return an objective in percent. It rises with the epochs, and is highest at weights of 5 and 2."""
    loss = math.log10(text_weight / 5) ** 2 + math.log10(image_weight / 2) ** 2
    return 70.0 - 10.0 * loss - 5.0 / epoch


def value_of(run: Config, epoch: int) -> float:
    """Return the objective of a run. The seed only adds a constant, so better settings stay better."""
    settings = run.flat()
    text_weight = float(settings.get("regularizer.text_weight", 10.0))
    image_weight = float(settings.get("regularizer.image_weight", 10.0))
    seed_effect = 0.25 * (run.train.seed % 7)
    return curve(text_weight, image_weight, epoch) + seed_effect


class FakeTrial(JobWorker):
    """Worker of a study with jobs that do not train."""

    def open_training(self, request: JobRequest) -> "FakeTraining":  # type: ignore[override]
        return FakeTraining(request)


class FakeTraining:
    """Training of a job, one epoch per call of `advance`.

    Its state is in the job's folder, as a checkpoint is, so that another worker can continue it.
    """

    def __init__(self, request: JobRequest) -> None:
        self._request = request
        self._job = request.job
        self._folder = request.job.folder
        self._state_path = self._folder / "state.json"
        self._configs = [run.model_dump(mode="json") for run in self._job.configs.values()]
        self._reports = self._read_reports()
        self._epoch = 0

    def _read_reports(self) -> list[EpochReport]:
        """Return the reports of an earlier worker, or none if it had other configurations."""
        if not self._state_path.exists():
            return []
        state = json.loads(self._state_path.read_text())
        if state["configs"] != self._configs:
            return []
        return [REPORT_ADAPTER.validate_python(report, strict=False) for report in state["reports"]]

    def _write_reports(self) -> None:
        """Write the reports so far, as a checkpoint."""
        reports = [REPORT_ADAPTER.dump_python(report, mode="json") for report in self._reports]
        state = {"configs": self._configs, "reports": reports}
        write_atomically(self._state_path, json.dumps(state).encode())

    def close(self) -> None:
        """Do nothing, because nothing is open."""

    def _behaviour(self) -> str:
        """Return the behaviour of the job, or "" to behave well."""
        table = {}
        with contextlib.suppress(FileNotFoundError):
            table = json.loads((self._folder.parents[1] / BEHAVIOUR).read_text())
        number = self._folder.name.lstrip("0") or "0"
        return str(table.get(number, table.get("all", "")))

    def advance(self) -> EpochReport:
        """Run an epoch, or repeat the report of one that an earlier worker has finished.

        Raises:
            RuntimeError: The behaviour is "raise", or "needs" with more than the job has.
            InfrastructureError: The behaviour is "full".
        """
        # Not in `__init__`, because Tune may create a second worker of a job and never use it.
        write_atomically(self._folder / "pid", str(os.getpid()).encode())
        self._epoch += 1
        if self._epoch <= len(self._reports):
            return self._reported(self._reports[self._epoch - 1])

        behaviour = self._behaviour()
        self._misbehave(behaviour)
        if behaviour == "fail":
            return EpochReport(epoch=self._epoch, error="loss is nan in step 7", finished=True)

        report = EpochReport(
            epoch=self._epoch,
            runs=tuple(self._score(run, self._epoch, behaviour) for run in self._job.configs.values()),
            loss=1.0 / self._epoch,
            finished=self._epoch == self._job.epochs,
        )
        self._reports.append(report)
        self._write_reports()
        with (self._folder / "steps.log").open("a") as log:
            log.write(f"{self._epoch}\n")
        return self._reported(report)

    def _misbehave(self, behaviour: str) -> None:
        """Do what a behaviour does before the end of an epoch. The errors are those of `advance`."""
        epoch = self._epoch
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
            # The driver recognizes torch's message. Importing torch would take longer than the whole job.
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        if behaviour == "reads-data":
            self._read_data()
        if behaviour == "raise":
            raise RuntimeError("the disk is made of cheese")
        if behaviour == "full":
            raise InfrastructureError(f"cannot write {self._folder}: No space left on device")

    def _score(self, run: Config, epoch: int, behaviour: str) -> RunScore:
        """Return the score of a run after an epoch."""
        value = value_of(run, epoch)
        if behaviour == "bad":
            value = 1.0 + epoch
        score = RunScore(
            dataset=run.data.name,
            seed=run.train.seed,
            base=value + 2,
            new=value - 2,
            objective=value,
            seconds=0.5 * epoch,
            **self._request.allocated,
        )
        if behaviour == "missing":
            return replace(score, objective=None)
        return score

    @property
    def _share(self) -> float:
        """Number of GPUs that Ray allocated to the trainer, or of CPUs if it has no GPU."""
        import ray

        bundle = ray.util.get_current_placement_group().bundle_specs[0]
        return float(bundle.get("GPU") or bundle["CPU"])

    def _read_data(self) -> None:
        """Fail on a node without data. On other nodes, wait until such a node has failed, at most 120 s."""
        tried = self._folder.parents[1] / "a-node-without-data-was-tried"
        if os.environ.get(MOUNT) == "missing":
            from tune.execution.training import _require_inputs  # loads torch

            tried.touch()
            _require_inputs(Config().override({"data.name": "folder", "data.root": "/not-mounted"}))
        deadline = time.monotonic() + 120
        while not tried.exists() and time.monotonic() < deadline:
            time.sleep(0.02)

    def _hang(self) -> None:
        """Wait until the worker is killed or its behaviour changes."""
        write_atomically(self._folder / HANGS, str(os.getpid()).encode())
        while self._behaviour() == "hang":
            time.sleep(0.02)

    def _reported(self, report: EpochReport) -> EpochReport:
        """Return a report. Write the results of the job's runs if it is the last one.

        As in real training, repeated reports write them too. A worker may have been killed between its last
        checkpoint and the result.
        """
        if report.finished:
            for folder, run in self._job.configs.items():
                objective = value_of(run, self._job.epochs)
                figures = {"objective": objective, "base": 1.0, "new": 1.0, "seconds": 1.5}
                write_result(folder, run, self._job.objective, figures, **self._request.allocated)
        return report


def write_result(
    folder: Path, run: Config, objective: str, *records: dict[str, float], **resources: float
) -> None:
    """Write config.yaml and result.json of a finished run.

    Args:
        folder: The run's folder.
        run: Configuration of the run.
        objective: Name of the objective.
        records: Figures of each epoch.
        resources: `cpus` and `gpus` of the result.
    """
    excluded: Iterable[str] = ()
    if run.data.name == "folder" and run.data.root:
        excluded = read_exclusions(run.data.root)
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
    """Return the digests of data and weights of a zero-shot run, and "" for a trained run.

    `reproduce --tune` compares only those of zero-shot runs.
    """
    if not run.method.startswith("zero-shot"):
        return "", ""
    from prometar.clip.openclip import load_backbone
    from prometar.clip.weights import weights_digest

    clip = load_backbone(run.backbone.name, run.backbone.pretrained).clip
    return open_dataset(run.data.name, run.data.root).digest, weights_digest(clip)


def fake_job(folder: Path, number: int, *, epochs: int = 3) -> Job:
    """Return a job of one run in FOLDER/trials/NNNN."""
    run = Config().override({"train.epochs": epochs, "train.seed": 0})
    configs = {folder / f"trials/{number:04d}": run}
    return Job(f"trial {number}", configs, objective="drift", trial_number=number)


def misbehave(folder: Path, behaviour: dict[str, str]) -> None:
    """Tell the jobs below a folder how to behave."""
    write_atomically(folder / BEHAVIOUR, json.dumps(behaviour).encode())
