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

Run = tuple[Callable[[int, dict[str, float]], object], Callable[[str], object]]
"""Functions that log an epoch and finish a run, with its failure or ""."""
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}  # fmt: skip
"""Environment in which a lost server does not stall a search."""


def start(name: str, folder: Path, job: Job, settings: dict[str, Any]) -> Run:
    """Start or resume a job's run: in the study's folder, at MLFLOW_TRACKING_URI, or in WANDB_PROJECT."""
    os.environ.update({**QUIET, **os.environ})
    key = sha256(str(job.folder).encode()).hexdigest()[:16]
    if name == "tensorboard":
        create = import_module("torch.utils.tensorboard").SummaryWriter
        writer = create(str(folder / name / job.name), flush_secs=5)
        writer.add_hparams(settings, {}, run_name=".")
        return lambda n, fs: [writer.add_scalar(k, v, n) for k, v in fs.items()], lambda _: writer.close()
    if name == "mlflow":
        library, param = import_module(name), import_module("mlflow.entities").Param
        local = f"sqlite:///{folder / 'mlflow.db'}"
        client = library.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", local))
        found = client.get_experiment_by_name(folder.name)
        where = found.experiment_id if found else client.create_experiment(folder.name)
        runs = client.search_runs([where], f"tags.job = '{key}'")
        run = (runs or [client.create_run(where, tags={"job": key}, run_name=job.name)])[0].info.run_id
        client.log_batch(run, params=[param(k, str(value)) for k, value in settings.items()])
        ends = {True: "FINISHED", False: "FAILED"}
        return (
            lambda n, fs: [client.log_metric(run, k, v, step=n) for k, v in fs.items()],
            lambda failure: client.set_terminated(run, ends[not failure]),
        )
    library = import_module(name)
    mode = None if os.environ.get("WANDB_MODE") or library.login(prompt=False) else "offline"
    options = library.Settings(console="off", disable_code=True, disable_git=True, x_disable_meta=True)
    run = library.init(
        project=os.environ.get("WANDB_PROJECT", "prometar"), group=folder.name, name=job.name, id=key,
        resume="allow", reinit="create_new", config=settings, dir=folder, mode=mode, settings=options,
    )  # fmt: skip
    return lambda n, fs: run.log(fs, step=n), lambda failure: run.finish(exit_code=int(failure != ""))


class Trackers:
    """Observer that passes jobs on to trackers. A tracker that fails prints one line and is off."""

    def __init__(self, names: tuple[str, ...], folder: Path, console: Console) -> None:
        self._folder, self._console = folder, console
        self._runs: dict[str, dict[str, Run]] = {name: {} for name in names}

    def started(self, job: Job) -> None:
        flat = job.config.flat()
        settings = {key: value for key, value in flat.items() if isinstance(value, bool | int | float | str)}
        self._each(lambda name, runs: runs.update({job.name: start(name, self._folder, job, settings)}))

    def reported(self, job: Job, report: EpochReport) -> None:
        found = {name: getattr(report, name) for name in ("objective", "base", "new", "loss", "seconds")}
        figures = {name: value for name, value in found.items() if value is not None}
        self._each(lambda _, runs: runs[job.name][0](report.epoch, figures) if report.runs else None)

    def finished(self, job: Job, failure: str) -> None:
        self._each(lambda _, runs: runs.pop(job.name)[1](failure))

    def close(self) -> None:
        """End the runs of interrupted jobs."""
        self._each(lambda _, runs: [finish("interrupted") for _, finish in runs.values()])

    def _each(self, act: Callable[[str, dict[str, Run]], object]) -> None:
        for name, runs in list(self._runs.items()):
            try:
                act(name, runs)
            except Exception as error:  # whatever a tracker raises
                del self._runs[name]
                self._console.print(f"Tracker {name} failed and is off: {first_line(error)}", markup=False)
