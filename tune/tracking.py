"""Experiment trackers: TensorBoard, MLflow and W&B. A resumed study may log an epoch twice."""

import os
from collections.abc import Callable
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console

from prometar.errors import first_line
from tune.execution.jobs import Job
from tune.records.schema import EpochReport

TrackedRun = tuple[Callable[[int, dict[str, float]], object], Callable[[str], object]]
"""Two functions: one logs the metrics of an epoch, one finishes the run, given its failure or ""."""
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}  # fmt: skip
"""Defaults of environment variables, with which an unreachable server does not delay a search."""


def start(name: str, folder: Path, job: Job, settings: dict[str, Any]) -> TrackedRun:
    """Start or resume the run of a job. Trackers write to `folder` unless the environment sets a server."""
    os.environ.update({**_ENVIRONMENT, **os.environ})
    tag = sha256(str(job.folder).encode()).hexdigest()[:16]
    if name == "tensorboard":
        create = import_module("torch.utils.tensorboard").SummaryWriter
        writer = create(str(folder / name / job.name), flush_secs=5)
        writer.add_hparams(settings, {}, run_name=".")
        return (
            lambda epoch, metrics: [writer.add_scalar(*each, epoch) for each in metrics.items()],
            lambda failure: writer.close(),
        )
    if name == "mlflow":
        library, param = import_module(name), import_module("mlflow.entities").Param
        local = f"sqlite:///{folder / 'mlflow.db'}"
        client = library.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", local))
        found = client.get_experiment_by_name(folder.name)
        experiment = found.experiment_id if found else client.create_experiment(folder.name)
        runs = client.search_runs([experiment], f"tags.job = '{tag}'")
        run = (runs or [client.create_run(experiment, tags={"job": tag}, run_name=job.name)])[0].info.run_id
        client.log_batch(run, params=[param(key, str(value)) for key, value in settings.items()])
        return (
            lambda epoch, metrics: [client.log_metric(run, *each, step=epoch) for each in metrics.items()],
            lambda failure: client.set_terminated(run, "FAILED" if failure else "FINISHED"),
        )
    library = import_module(name)
    mode = None if os.environ.get("WANDB_MODE") or library.login(prompt=False) else "offline"
    options = library.Settings(console="off", disable_code=True, disable_git=True, x_disable_meta=True)
    run = library.init(
        project=os.environ.get("WANDB_PROJECT", "prometar"), group=folder.name, name=job.name, id=tag,
        resume="allow", reinit="create_new", config=settings, dir=folder, mode=mode, settings=options,
    )  # fmt: skip
    return lambda epoch, metrics: run.log(metrics, step=epoch), lambda failure: run.finish(int(failure != ""))


class Trackers:
    """Observer that logs jobs to experiment trackers. A tracker that fails is disabled with a message."""

    def __init__(self, names: tuple[str, ...], folder: Path, console: Console) -> None:
        self._folder, self._console = folder, console
        self._runs: dict[str, dict[str, TrackedRun]] = {name: {} for name in names}

    def started(self, job: Job) -> None:
        flat = job.config.flat()
        settings = {key: value for key, value in flat.items() if isinstance(value, bool | int | float | str)}
        self._for_each(lambda name, runs: runs.update({job.name: start(name, self._folder, job, settings)}))

    def reported(self, job: Job, report: EpochReport) -> None:
        values = {name: getattr(report, name) for name in ("objective", "base", "new", "loss", "seconds")}
        metrics = {name: value for name, value in values.items() if value is not None}
        self._for_each(lambda _, runs: runs[job.name][0](report.epoch, metrics) if report.runs else None)

    def finished(self, job: Job, failure: str) -> None:
        self._for_each(lambda _, runs: runs.pop(job.name)[1](failure))

    def close(self) -> None:
        """Finish the runs of interrupted jobs as failed."""
        self._for_each(lambda _, runs: [finish("interrupted") for _, finish in runs.values()])

    def _for_each(self, function: Callable[[str, dict[str, TrackedRun]], object]) -> None:
        for name, runs in list(self._runs.items()):
            try:
                function(name, runs)
            except Exception as error:  # trackers raise errors of many types
                del self._runs[name]
                self._console.print(f"Tracker {name} is disabled: {first_line(error)}", markup=False)
