"""Experiment trackers: what users see in the real ones, over interruptions and failures."""

import io
import json
import socket
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tune import tracking
from tune.config import StudyConfig
from tune.execution.jobs import EpochReport, Job, RunSpec

CONFIG = {"optim": {"lr": 0.0025}, "regularizer": {"kind": "l1"}, "augment": {"flip": True, "args": []}}
SETTINGS = {"optim.lr": "0.0025", "regularizer.kind": "l1", "augment.flip": "True"}

Shown = dict[str, tuple[dict[str, str], dict[int, float]]]
"""Settings and objective by epoch of each run, by its name."""


def job(folder: Path, number: int) -> Job:
    return Job(
        f"trial {number}", (RunSpec(CONFIG, str(folder / f"trials/{number:04d}")),), "drift", 20, number
    )


def report(epoch: int, **more: Any) -> EpochReport:
    figures: Any = {"epoch": epoch, "objective": 50.0 + epoch, "base": 60.0, "loss": 1.0 / epoch, "new": None}
    return {**figures, "seconds": 2.0 * epoch, "runs": [], **more}


def search(folder: Path, name: str, console: Console, first: int, last: int) -> None:
    """Trial 0 reports these epochs and finishes with epoch 3; trial 1 fails in its first epoch."""
    config = StudyConfig.of(dataset="textures", settings={"location.trackers": (name,)})
    with tracking.trackers(config, folder, console) as (observer,):
        observer.started(job(folder, 0))
        for epoch in range(first, last + 1):
            observer.reported(job(folder, 0), report(epoch))
        if last == 3:
            observer.finished(job(folder, 0), "")
            observer.started(job(folder, 1))
            observer.reported(job(folder, 1), {"failed": "the loss is nan"})
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
        settings["augment.flip"] = str(settings["augment.flip"] == "1.0" or settings["augment.flip"])
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


def shown_by_wandb(folder: Path) -> Shown:
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its process writes all files
    found: Shown = {}
    ids: dict[str, str] = {}
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        records = [Record.FromString(data) for data in log_records(file.read_bytes())]
        name = next(each.run.display_name for each in records if each.run.display_name)
        assert ids.setdefault(name, file.stem) == file.stem, "a trial has one run"
        settings, objectives = found.setdefault(name, ({}, {}))
        for record in records:
            config = {each.key: str(json.loads(each.value_json)) for each in record.run.config.update}
            settings |= {key: value for key, value in config.items() if key != "_wandb"}
            values = {(e.key or e.nested_key[0]): json.loads(e.value_json) for e in record.history.item}
            if "objective" in values:
                objectives[record.history.step.num] = values["objective"]
    return found


def log_records(data: bytes) -> list[bytes]:
    """Records of a LevelDB log, the format of W&B's runs, after a header of seven bytes."""
    found, part, at = [], b"", 7
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            found.append(part)
            part = b""
    return found


REAL: dict[str, Callable[[Path], Shown]] = {
    "tensorboard": shown_by_tensorboard, "mlflow": shown_by_mlflow, "wandb": shown_by_wandb,
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
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
    folder, out = tmp_path / "study", io.StringIO()
    folder.mkdir()
    search(folder, name, Console(file=out), 1, 2)
    search(folder, name, Console(file=out), 2, 3)  # interrupted: epoch 2 is logged again
    assert out.getvalue() == ""
    assert REAL[name](folder) == {
        "trial 0": (SETTINGS, {1: 51.0, 2: 52.0, 3: 53.0}),
        "trial 1": (SETTINGS, {}),
    }
    assert {path.name for path in tmp_path.iterdir()} == {"study"}


def refuse(address: Any, *args: Any, **options: Any) -> None:
    raise AssertionError(f"connection to {address}")


@pytest.mark.parametrize("fails", ["start", "log", "finish"])
def test_a_tracker_that_fails_is_one_line_and_does_not_stop_the_search(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def start(name: str, *args: Any) -> tracking.Run:
        def call(what: str) -> None:
            if name == "mlflow" and what == fails:
                raise OSError("connection lost\nat [bold] host")
            calls.append((name, what))

        call("start")
        return lambda epoch, figures: call("log"), lambda failure: call("finish")

    monkeypatch.setattr(tracking, "start", start)
    out = io.StringIO()
    observer = tracking.Trackers(("mlflow", "wandb"), tmp_path, Console(file=out))
    observer.started(job(tmp_path, 0))
    observer.reported(job(tmp_path, 0), report(1))
    observer.finished(job(tmp_path, 0), "")
    observer.close()
    steps = ["start", "log", "finish"]
    assert [what for name, what in calls if name == "wandb"] == steps
    assert [what for name, what in calls if name == "mlflow"] == steps[: steps.index(fails)]
    assert out.getvalue() == "Tracker mlflow failed and is off: connection lost\n"


def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    out = io.StringIO()
    tracking.Trackers(("mlflow",), tmp_path, Console(file=out, width=200)).started(job(tmp_path, 0))
    assert out.getvalue().startswith("Tracker mlflow failed and is off: ")
    assert out.getvalue().count("\n") == 1
