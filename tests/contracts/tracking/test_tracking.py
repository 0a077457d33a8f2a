"""Experiment trackers: what TensorBoard, MLflow and Weights & Biases show, and what happens if one fails."""

import io
import socket
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prometar.config.settings import Config
from tune import tracking
from tune.execution.job import Job
from tune.records.schema import EpochReport, RunScore

SETTINGS = {"optim.lr": "0.0025", "regularizer.kind": "l1", "augment.flip": "0.5"}
"""Some settings of each trial, as trackers show them."""

Shown = dict[str, tuple[dict[str, str], dict[int, float]]]
"""Settings, and objective by epoch, of each run by its name."""


def job(folder: Path, number: int) -> Job:
    """Return the job of a trial."""
    configs = {folder / f"trials/{number:04d}": Config()}
    return Job(f"trial {number}", configs, objective="drift", val_per_class=20, trial_number=number)


def report(epoch: int) -> EpochReport:
    """Return the report of an epoch. The objective is 50 plus the number of the epoch."""
    run = RunScore(
        dataset="textures", seed=3, base=60.0, new=None, objective=50.0 + epoch, seconds=2.0 * epoch
    )
    return EpochReport(epoch, (run,), loss=1.0 / epoch)


def search(folder: Path, name: str, console: Console, *, first: int, last: int) -> None:
    """Let a tracker observe a part of a search.

    Trial 0 reports the epochs from `first` to `last`. If it ends with epoch 3, trial 1 follows and fails.

    Args:
        folder: Folder of the study.
        name: Name of the tracker.
        console: Console of the tracker.
        first: First epoch of trial 0.
        last: Last epoch of trial 0.
    """
    with closing(tracking.Trackers((name,), folder, console)) as observer:
        observer.started(job(folder, 0))
        for epoch in range(first, last + 1):
            observer.reported(job(folder, 0), report(epoch))
        if last == 3:
            observer.finished(job(folder, 0), "")
            observer.started(job(folder, 1))
            observer.reported(job(folder, 1), EpochReport(error="the loss is nan"))
            observer.finished(job(folder, 1), "the loss is nan")


def shown_by_tensorboard(folder: Path) -> Shown:
    """Return what TensorBoard reads from a study's folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    shown: Shown = {}
    for run_folder in (folder / "tensorboard").iterdir():
        events = EventAccumulator(str(run_folder)).Reload()
        start = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        hparams = HParamsPluginData.FromString(start).session_start_info.hparams
        settings: dict[str, str] = {}
        for key, value in hparams.items():
            type_of_value = value.WhichOneof("kind")  # e.g. "number_value"
            settings[key] = str(getattr(value, type_of_value))
        objectives: dict[int, float] = {}
        if "objective" in events.Tags()["scalars"]:
            objectives = {event.step: event.value for event in events.Scalars("objective")}
        shown[run_folder.name] = (settings, objectives)
    return shown


def shown_by_mlflow(folder: Path) -> Shown:
    """Return what MLflow's database in a study's folder contains."""
    select_runs = "select run_uuid, name, status from runs"
    select_objectives = "select step, value from metrics where run_uuid = ? and key = 'objective'"
    select_settings = "select key, value from params where run_uuid = ?"
    shown: Shown = {}
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        for run_id, name, status in database.execute(select_runs).fetchall():
            assert name not in shown, "a trial has one run"
            assert status == ("FINISHED" if name == "trial 0" else "FAILED")
            objectives = dict(database.execute(select_objectives, [run_id]).fetchall())
            settings = dict(database.execute(select_settings, [run_id]).fetchall())
            shown[name] = (settings, objectives)
    return shown


def refuse(address: Any, *args: Any, **options: Any) -> None:
    """Refuse a connection. This function replaces `socket.create_connection`."""
    raise AssertionError(f"connection to {address}")


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a study. The user has neither an account of a tracker nor a network."""
    for key in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "nobody"))
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "study"
    folder.mkdir()
    return folder


def search_and_resume(folder: Path, name: str) -> None:
    """Let a tracker observe a search that is interrupted after epoch 2, and that then reports it again."""
    printed = io.StringIO()
    search(folder, name, Console(file=printed), first=1, last=2)
    search(folder, name, Console(file=printed), first=2, last=3)
    assert printed.getvalue() == ""


@pytest.mark.parametrize(
    ("name", "shown"), [("tensorboard", shown_by_tensorboard), ("mlflow", shown_by_mlflow)]
)
@pytest.mark.filterwarnings("ignore")  # of the trackers
def test_a_tracker_shows_all_epochs_of_a_resumed_search(
    name: str, shown: Callable[[Path], Shown], study: Path
) -> None:
    pytest.importorskip(name)

    search_and_resume(study, name)

    runs = shown(study)
    assert runs.keys() == {"trial 0", "trial 1"}
    settings_of_trial_0, objectives_of_trial_0 = runs["trial 0"]
    settings_of_trial_1, objectives_of_trial_1 = runs["trial 1"]
    assert objectives_of_trial_0 == {1: 51.0, 2: 52.0, 3: 53.0}
    assert objectives_of_trial_1 == {}
    assert SETTINGS.items() <= settings_of_trial_0.items()
    assert SETTINGS.items() <= settings_of_trial_1.items()
    assert list(study.parent.iterdir()) == [study], "nothing is written elsewhere"


@pytest.mark.filterwarnings("ignore")  # of the tracker
def test_wandb_without_an_account_writes_a_run_for_each_trial(study: Path) -> None:
    wandb = pytest.importorskip("wandb")

    search_and_resume(study, "wandb")

    wandb.teardown()  # wait until its process has written all files
    files = list(study.glob("wandb/offline-run-*/*.wandb"))
    assert len({file.stem for file in files}) == 2, "a resumed trial has the same run"
    assert any(b"objective" in file.read_bytes() for file in files)


@pytest.mark.parametrize("fails", ["start", "log", "finish"])
def test_a_tracker_that_fails_prints_one_line_and_does_not_stop_the_search(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow fails in one of its calls. Weights & Biases goes on."""
    calls: list[tuple[str, str]] = []  # trackers and their calls that succeeded

    def start(name: str, *args: Any) -> Any:
        def call(what: str) -> None:
            if name == "mlflow" and what == fails:
                raise OSError("connection lost\nat [bold] host")
            calls.append((name, what))

        call("start")
        return tracking.TrackerRun(log=lambda *_: call("log"), finish=lambda _: call("finish"))

    monkeypatch.setattr(tracking, "start_tracking", start)
    printed = io.StringIO()
    observer = tracking.Trackers(("mlflow", "wandb"), tmp_path, Console(file=printed))

    observer.started(job(tmp_path, 0))
    observer.reported(job(tmp_path, 0), report(1))
    observer.finished(job(tmp_path, 0), "")
    observer.close()

    all_calls = ["start", *["log"] * len(report(1).metrics), "finish"]
    assert [call for name, call in calls if name == "wandb"] == all_calls
    assert [call for name, call in calls if name == "mlflow"] == all_calls[: all_calls.index(fails)]
    assert printed.getvalue() == "Tracker mlflow is disabled: connection lost\n"


def test_a_tracker_whose_package_is_missing_prints_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    printed = io.StringIO()
    tracking.Trackers(("mlflow",), tmp_path, Console(file=printed, width=200)).started(job(tmp_path, 0))
    assert printed.getvalue().startswith("Tracker mlflow is disabled: ")
    assert printed.getvalue().count("\n") == 1
