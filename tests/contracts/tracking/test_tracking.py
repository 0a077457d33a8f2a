"""Experiment trackers: what users see in the real ones, over interruptions and failures."""

import io
import socket
import sqlite3
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

Shown = dict[str, tuple[dict[str, str], dict[int, float]]]
"""Settings and objective by epoch of each run, by its name."""


def job(folder: Path, number: int) -> Job:
    return Job(f"trial {number}", {folder / f"trials/{number:04d}": Config()}, "drift", 20, number)


def report(epoch: int) -> EpochReport:
    return EpochReport(epoch, (RunScore("textures", 3, 60.0, None, 50.0 + epoch, 2.0 * epoch),), 1.0 / epoch)


def search(folder: Path, name: str, console: Console, first: int, last: int) -> None:
    """Trial 0 reports these epochs and finishes with epoch 3; trial 1 fails in its first epoch."""
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
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    found: Shown = {}
    for place in sorted((folder / "tensorboard").iterdir()):
        events = EventAccumulator(str(place)).Reload()
        start = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        hparams = HParamsPluginData.FromString(start).session_start_info.hparams
        settings = {key: str(getattr(v, v.WhichOneof("kind"))) for key, v in hparams.items()}
        scalars = events.Scalars("objective") if "objective" in events.Tags()["scalars"] else []
        found[place.name] = (settings, {e.step: e.value for e in scalars})
    return found


def shown_by_mlflow(folder: Path) -> Shown:
    found: Shown = {}
    with sqlite3.connect(folder / "mlflow.db") as db:
        for run, name, status in db.execute("select run_uuid, name, status from runs").fetchall():
            assert name not in found, "a trial has one run"
            assert status == ("FINISHED" if name == "trial 0" else "FAILED")
            query = "select step, value from metrics where run_uuid = ? and key = 'objective'"
            metrics = dict(db.execute(query, [run]).fetchall())
            params = dict(db.execute("select key, value from params where run_uuid = ?", [run]).fetchall())
            found[name] = (params, metrics)
    db.close()
    return found


REAL: dict[str, Callable[[Path], Shown]] = {"tensorboard": shown_by_tensorboard, "mlflow": shown_by_mlflow}


@pytest.mark.parametrize("name", [*REAL, "wandb"])
@pytest.mark.filterwarnings("ignore")  # of the trackers
def test_a_tracker_shows_all_epochs_of_a_resumed_search(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(name)
    for key in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "nobody"))
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "study"
    out = io.StringIO()
    folder.mkdir()
    search(folder, name, Console(file=out), 1, 2)
    search(folder, name, Console(file=out), 2, 3)  # interrupted: epoch 2 is logged again
    assert out.getvalue() == ""
    if name == "wandb":
        __import__("wandb").teardown()  # its process writes all files
        files = list(folder.glob("wandb/offline-run-*/*.wandb"))
        assert len({file.stem for file in files}) == 2, "a trial has one run"
        assert any(b"objective" in file.read_bytes() for file in files)
        return
    found = REAL[name](folder)
    assert {run: objectives for run, (_, objectives) in found.items()} == {
        "trial 0": {1: 51.0, 2: 52.0, 3: 53.0},
        "trial 1": {},
    }
    assert all(SETTINGS.items() <= settings.items() for settings, _ in found.values())
    assert {path.name for path in tmp_path.iterdir()} == {"study"}


def refuse(address: Any, *args: Any, **options: Any) -> None:
    raise AssertionError(f"connection to {address}")


@pytest.mark.parametrize("fails", ["start", "log", "finish"])
def test_a_tracker_that_fails_is_one_line_and_does_not_stop_the_search(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def start(name: str, *args: Any) -> Any:
        def call(what: str) -> None:
            if name == "mlflow" and what == fails:
                raise OSError("connection lost\nat [bold] host")
            calls.append((name, what))

        call("start")
        return tracking.TrackerRun(log=lambda *_: call("log"), finish=lambda _: call("finish"))

    monkeypatch.setattr(tracking, "start_tracking", start)
    out = io.StringIO()
    observer = tracking.Trackers(("mlflow", "wandb"), tmp_path, Console(file=out))
    observer.started(job(tmp_path, 0))
    observer.reported(job(tmp_path, 0), report(1))
    observer.finished(job(tmp_path, 0), "")
    observer.close()
    steps = ["start", *["log"] * len(report(1).metrics), "finish"]
    assert [what for name, what in calls if name == "wandb"] == steps
    assert [what for name, what in calls if name == "mlflow"] == steps[: steps.index(fails)]
    assert out.getvalue() == "Tracker mlflow is disabled: connection lost\n"


def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    out = io.StringIO()
    tracking.Trackers(("mlflow",), tmp_path, Console(file=out, width=200)).started(job(tmp_path, 0))
    assert out.getvalue().startswith("Tracker mlflow is disabled: ")
    assert out.getvalue().count("\n") == 1
