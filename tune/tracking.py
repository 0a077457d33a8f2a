"""Experiment trackers: TensorBoard, MLflow and W&B. A resumed study may log an epoch twice."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import Console

from prometar.errors import first_line
from tune.execution.job import Job
from tune.records.schema import EpochReport

_ENVIRONMENT = {  # no telemetry, no output, and no long wait for an unreachable server
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
}


@dataclass(frozen=True)
class TrackerRun:
    """Run of a tracker, which shows one job.

    Args:
        log: Function that logs a value, given the metric's name, the value and the epoch.
        finish: Function that ends the run, given the failure reason, or "" if the job did not fail.
    """

    log: Callable[[str, float, int], object]
    finish: Callable[[str], object]


def start_tracking(tracker: str, folder: Path, job: Job) -> TrackerRun:
    """Start or resume tracking a job.

    Args:
        tracker: "tensorboard", "mlflow" or "wandb".
        folder: Folder of the study. Trackers that log to files rather than to a server write there.
        job: The job.

    Raises:
        ImportError: the tracker is not installed.
        Exception: any error of the tracker, e.g. if its server is unreachable.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    identity = job.config.identity()
    job_id = sha256(f"{job.folder} {identity}".encode()).hexdigest()[:16]
    settings = {key: value for key, value in identity.items() if isinstance(value, bool | int | float | str)}
    if tracker == "tensorboard":
        return _start_tensorboard(folder, job, settings)
    if tracker == "mlflow":
        return _start_mlflow(folder, job, job_id, settings)
    return _start_wandb(folder, job, job_id, settings)


def _start_tensorboard(folder: Path, job: Job, settings: dict[str, Any]) -> TrackerRun:
    tensorboard = import_module("torch.utils.tensorboard")
    writer = tensorboard.SummaryWriter(folder / "tensorboard" / job.name, flush_secs=5)
    writer.add_hparams(settings, {}, run_name=".")  # "." avoids a subfolder

    def finish(failure: str) -> None:
        writer.close()

    return TrackerRun(log=writer.add_scalar, finish=finish)


def _start_mlflow(folder: Path, job: Job, job_id: str, settings: dict[str, Any]) -> TrackerRun:
    mlflow = import_module("mlflow")
    database = f"sqlite:///{quote(str(folder))}/mlflow.db"
    client = mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", database))
    existing = client.get_experiment_by_name(folder.name)
    experiment_id = existing.experiment_id if existing else client.create_experiment(folder.name)
    runs = client.search_runs([experiment_id], f"tags.job = '{job_id}'")
    if not runs:
        runs = [client.create_run(experiment_id, tags={"job": job_id}, run_name=job.name)]
    run_id = runs[0].info.run_id
    params = [mlflow.entities.Param(key, str(value)) for key, value in settings.items()]
    client.log_batch(run_id, params=params)

    def log(name: str, value: float, epoch: int) -> None:
        client.log_metric(run_id, name, value, step=epoch)

    def finish(failure: str) -> None:
        client.set_terminated(run_id, "FAILED" if failure else "FINISHED")

    return TrackerRun(log, finish)


def _start_wandb(folder: Path, job: Job, job_id: str, settings: dict[str, Any]) -> TrackerRun:
    wandb = import_module("wandb")
    mode = None  # W&B then uses WANDB_MODE, or logs to its server if WANDB_MODE is not set
    if not os.environ.get("WANDB_MODE") and not wandb.login(prompt=False):
        mode = "offline"
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "prometar"),
        group=folder.name,
        name=job.name,
        id=job_id,
        resume="allow",
        reinit="create_new",
        config=settings,
        dir=folder,
        mode=mode,
        settings={"console": "off", "disable_code": True, "disable_git": True, "x_disable_meta": True},
    )

    def log(name: str, value: float, epoch: int) -> None:
        run.log({name: value}, epoch)

    def finish(failure: str) -> None:
        run.finish(exit_code=1 if failure else 0)

    return TrackerRun(log, finish)


class Trackers:
    """Observer that logs jobs to experiment trackers. A tracker that fails is disabled with a message.

    Args:
        names: Names of the trackers.
        folder: Folder of the study.
        console: Console for messages.
    """

    def __init__(self, names: tuple[str, ...], folder: Path, console: Console) -> None:
        self._folder = folder
        self._console = console
        # By name of the tracker, then by name of the job.
        self._runs: dict[str, dict[str, TrackerRun]] = {name: {} for name in names}

    def started(self, job: Job) -> None:
        def start(name: str, runs: dict[str, TrackerRun]) -> None:
            runs[job.name] = start_tracking(name, self._folder, job)

        self._for_each_tracker(start)

    def reported(self, job: Job, report: EpochReport) -> None:
        def log(name: str, runs: dict[str, TrackerRun]) -> None:
            for metric, value in report.metrics.items():
                runs[job.name].log(metric, value, report.epoch)

        self._for_each_tracker(log)

    def finished(self, job: Job, failure: str) -> None:
        def finish(name: str, runs: dict[str, TrackerRun]) -> None:
            runs.pop(job.name).finish(failure)

        self._for_each_tracker(finish)

    def close(self) -> None:
        """End the tracker runs of interrupted jobs. MLflow and W&B record these runs as failed."""

        def interrupt(name: str, runs: dict[str, TrackerRun]) -> None:
            for run in runs.values():
                run.finish("interrupted")

        self._for_each_tracker(interrupt)

    def _for_each_tracker(self, function: Callable[[str, dict[str, TrackerRun]], None]) -> None:
        """Call `function(tracker, runs)` for each tracker, where `runs` maps job names to tracker runs.

        A tracker that raises an error is disabled, with a message.
        """
        for name, runs in list(self._runs.items()):
            try:
                function(name, runs)
            except Exception as error:  # trackers raise errors of many types
                del self._runs[name]
                self._console.print(f"Tracker {name} is disabled: {first_line(error)}", markup=False)
