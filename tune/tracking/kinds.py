"""The experiment trackers a study can be shown in. Each is imported only when it is asked for."""

import logging
import netrc
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from prometar.errors import UserError


class Tracker(Protocol):
    """Shows trials somewhere; any of its methods may raise anything.

    A trial that an earlier process began goes on in the run that it has there.
    """

    def begin(self, number: int, settings: Mapping[str, Any]) -> None:
        """A trial starts, or goes on; called once a process and trial, before all else about it."""

    def log(self, number: int, epoch: int, values: Mapping[str, float]) -> None:
        """An epoch's figures, all finite."""

    def end(self, number: int, state: str, value: float | None) -> None:
        """A trial has ended: COMPLETE, PRUNED or FAIL, and its objective if it has one."""

    def close(self) -> None:
        """The process ends; trials that have not ended go on in another."""


class TensorBoard:
    """A folder a trial in OUT/STUDY/tensorboard; the settings are in its tab HPARAMS."""

    def __init__(self, folder: Path, study: str, token: str) -> None:
        self._module = import_module("torch.utils.tensorboard")
        self._summaries = import_module("torch.utils.tensorboard.summary")
        self._folder = folder / "tensorboard"
        self._writers: dict[int, Any] = {}
        self._settings: dict[int, Mapping[str, Any]] = {}

    def begin(self, number: int, settings: Mapping[str, Any]) -> None:
        self._settings[number] = settings

    def log(self, number: int, epoch: int, values: Mapping[str, float]) -> None:
        # What an earlier process has written from this epoch on gives way to what comes.
        writer = self._writers.get(number) or self._open(number, purge_step=epoch)
        for name, value in values.items():
            writer.add_scalar(name, value, epoch)
        writer.flush()

    def _open(self, number: int, purge_step: int | None = None) -> Any:
        writer = self._module.SummaryWriter(str(self._folder / f"{number:04d}"), purge_step=purge_step)
        self._writers[number] = writer
        for summary in self._summaries.hparams(dict(self._settings[number]), {"objective": 0.0}):
            writer.file_writer.add_summary(summary)
        return writer

    def end(self, number: int, state: str, value: float | None) -> None:
        writer = self._writers.get(number) or self._open(number)
        writer.add_text("state", state)
        writer.close()
        del self._writers[number]

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()


_MLFLOW_STATES = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED"}


class MLflow:
    """A run a trial, in OUT/STUDY/mlflow.db, or wherever MLFLOW_TRACKING_URI says."""

    def __init__(self, folder: Path, study: str, token: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # A server that does not answer holds the search up: for seconds, not for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        tracking, self._entities = import_module("mlflow.tracking"), import_module("mlflow.entities")
        logging.getLogger("mlflow").setLevel(logging.ERROR)  # it tells of each of its tables
        self._study, self._token = study, token
        elsewhere = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = tracking.MlflowClient(tracking_uri=elsewhere or f"sqlite:///{folder / 'mlflow.db'}")
        artifacts = None if elsewhere else (folder / "mlflow-artifacts").as_uri()
        found = self._client.get_experiment_by_name(study)
        if found:
            self._experiment = found.experiment_id
        else:
            self._experiment = self._client.create_experiment(study, artifact_location=artifacts)
        self._runs: dict[int, str] = {}
        self._started: dict[int, int] = {}

    def begin(self, number: int, settings: Mapping[str, Any]) -> None:
        mine = {"prometar.study": self._token, "prometar.trial": str(number)}
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in mine.items())
        found = self._client.search_runs([self._experiment], filter_string=query)
        if found:
            run = found[0]
            self._client.update_run(run.info.run_id, status="RUNNING")
        else:
            run = self._client.create_run(self._experiment, run_name=f"{self._study} {number}", tags=mine)
            params = [self._entities.Param(key, str(value)) for key, value in settings.items()]
            self._client.log_batch(run.info.run_id, params=params)
        self._runs[number], self._started[number] = run.info.run_id, run.info.start_time

    def log(self, number: int, epoch: int, values: Mapping[str, float]) -> None:
        # In the trial's own time: MLflow takes equal figures of an equal moment for one.
        moment = self._started[number] + round(1000 * values.get("seconds", 0.0))
        metrics = [self._entities.Metric(name, value, moment, epoch) for name, value in values.items()]
        self._client.log_batch(self._runs[number], metrics=metrics)

    def end(self, number: int, state: str, value: float | None) -> None:
        run = self._runs.pop(number)
        self._client.set_tag(run, "state", state)
        self._client.set_terminated(run, _MLFLOW_STATES[state])

    def close(self) -> None:
        self._runs.clear()


class WandB:
    """A run a trial, in OUT/STUDY/wandb; sent nowhere unless the user is logged in or has set WANDB_MODE.

    Runs that were written offline by several processes are joined by `wandb sync --append`.
    """

    def __init__(self, folder: Path, study: str, token: str) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own, to its maker
        self._wandb = import_module("wandb")
        self._folder, self._study, self._token = folder, study, token
        self._mode = None if _chosen_online() else "offline"
        # Figures and settings only: no console, code, packages or machine.
        self._quiet = self._wandb.Settings(
            console="off",
            silent=True,
            save_code=False,
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
        )
        self._runs: dict[int, Any] = {}

    def begin(self, number: int, settings: Mapping[str, Any]) -> None:
        self._runs[number] = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "prometar"),
            group=self._study,
            name=f"{self._study} {number}",
            id=f"{self._token}-{number:04d}",
            resume="allow",
            reinit="create_new",  # trials run side by side
            config=dict(settings),
            dir=str(self._folder),
            mode=self._mode,
            settings=self._quiet,
        )

    def log(self, number: int, epoch: int, values: Mapping[str, float]) -> None:
        self._runs[number].log(dict(values), step=epoch)

    def end(self, number: int, state: str, value: float | None) -> None:
        run = self._runs.pop(number)
        run.summary["state"] = state
        run.finish(exit_code=1 if state == "FAIL" else 0)

    def close(self) -> None:
        for run in self._runs.values():
            run.finish(exit_code=1)  # not ended: another process goes on
        self._runs.clear()
        self._wandb.teardown()


def _chosen_online() -> bool:
    """Whether the user has set W&B's mode, or is logged in: then W&B decides."""
    if os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    with suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(os.environ.get("NETRC") or None).authenticators(host) is not None
    return False


# By the package without which it is not there: what it is opened with.
KINDS: dict[str, Callable[[Path, str, str], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}


def check_trackers(names: tuple[str, ...]) -> None:
    """Find out, before anything is run, whether these trackers can be had.

    Raises:
        UserError: an unknown name, or a package that is not installed.
    """
    for name in names:
        if name not in KINDS:
            raise UserError(f"unknown tracker '{name}': choose one of {', '.join(KINDS)}")
        if find_spec(name) is None:
            raise UserError(f"{name} is not installed: pip install '.[{name}]'")
