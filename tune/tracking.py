"""Experiment trackers: TensorBoard, MLflow and W&B. A resumed study may log an epoch twice."""

import os
from collections.abc import Callable
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

from rich.console import Console

from prometar.errors import first_line
from tune.execution.job import Job
from tune.records.schema import EpochReport


def start_tracking(tracker: str, folder: Path, job: Job) -> SimpleNamespace:
    """Start or resume tracking a job. Without a tracking server, log to the study's `folder`.

    Return a namespace with functions log(name, value, epoch) and finish(failure). `failure` is "" on success.
    """
    defaults = {  # disable telemetry and output, and give up on an unreachable server soon
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "true",
    }
    os.environ.update({**defaults, **os.environ})
    library = import_module("torch.utils.tensorboard" if tracker == "tensorboard" else tracker)
    flat = job.config.identity()
    job_id = sha256(f"{job.folder} {flat}".encode()).hexdigest()[:16]
    settings = {key: value for key, value in flat.items() if isinstance(value, bool | int | float | str)}
    if tracker == "tensorboard":
        writer = library.SummaryWriter(folder / tracker / job.name, flush_secs=5)
        writer.add_hparams(settings, {}, run_name=".")  # "." avoids a subfolder
        return SimpleNamespace(log=writer.add_scalar, finish=lambda failure: writer.close())
    if tracker == "mlflow":
        url = f"sqlite:///{quote(str(folder))}/mlflow.db"
        client = library.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", url))
        found = client.get_experiment_by_name(folder.name)
        experiment = found.experiment_id if found else client.create_experiment(folder.name)
        runs = client.search_runs([experiment], f"tags.job = '{job_id}'")
        runs = runs or [client.create_run(experiment, tags={"job": job_id}, run_name=job.name)]
        run_id = runs[0].info.run_id
        client.log_batch(run_id, params=[library.entities.Param(*map(str, kv)) for kv in settings.items()])
        return SimpleNamespace(
            log=lambda name, value, epoch: client.log_metric(run_id, name, value, step=epoch),
            finish=lambda failure: client.set_terminated(run_id, "FAILED" if failure else "FINISHED"),
        )
    run = library.init(
        project=os.environ.get("WANDB_PROJECT", "prometar"),
        group=folder.name,
        name=job.name,
        id=job_id,
        resume="allow",
        reinit="create_new",
        config=settings,
        dir=folder,
        mode=None if os.environ.get("WANDB_MODE") or library.login(prompt=False) else "offline",
        settings={"console": "off", "disable_code": True, "disable_git": True, "x_disable_meta": True},
    )
    return SimpleNamespace(
        log=lambda name, value, epoch: run.log({name: value}, epoch),
        finish=lambda failure: run.finish(int(failure != "")),
    )


class Trackers:
    """Observer that logs jobs to experiment trackers. A tracker that fails is disabled with a message."""

    def __init__(self, names: tuple[str, ...], folder: Path, console: Console) -> None:
        self._folder = folder
        self._console = console
        # By tracker, then by job.
        self._tracker_runs: dict[str, dict[str, SimpleNamespace]] = {name: {} for name in names}

    def started(self, job: Job) -> None:
        self._for_each(lambda name, runs: runs.update({job.name: start_tracking(name, self._folder, job)}))

    def reported(self, job: Job, report: EpochReport) -> None:
        metrics = report.metrics.items()
        self._for_each(lambda _, runs: [runs[job.name].log(*metric, report.epoch) for metric in metrics])

    def finished(self, job: Job, failure: str) -> None:
        self._for_each(lambda _, runs: runs.pop(job.name).finish(failure))

    def close(self) -> None:
        """End the tracker runs of interrupted jobs. MLflow and W&B record the runs as failed."""
        self._for_each(lambda _, runs: [run.finish("interrupted") for run in runs.values()])

    def _for_each(self, function: Callable[[str, dict[str, SimpleNamespace]], object]) -> None:
        for name, runs in list(self._tracker_runs.items()):
            try:
                function(name, runs)
            except Exception as error:  # trackers raise errors of many types
                del self._tracker_runs[name]
                self._console.print(f"Tracker {name} is disabled: {first_line(error)}", markup=False)
