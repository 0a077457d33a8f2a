"""Experiment trackers: what they are told, over deaths and failures, and what the real ones then show."""

import io
import json
import math
import socket
import sqlite3
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from prometar.errors import UserError
from tests.support import trials
from tune.jobs.spec import Job, Leg
from tune.results.schema import State, TrialRecord
from tune.tracking import kinds as tracker_kinds
from tune.tracking.callbacks import LEDGER, Trackers
from tune.tracking.kinds import check_trackers

SETTINGS = {"regularizer.kind": "l1", "optim.lr": 0.0025, "augment.flip": True}


def ended(number: int, state: State, objectives: list[float], **last: float) -> TrialRecord:
    epoch = len(objectives) if last else 0  # else what its last result told besides is not known
    return trials.ended(number, state, objectives, epoch=epoch, **last)


def tune_trial(tune_id: str) -> Any:
    """One of Tune's: its worker trains the study's trials of these numbers."""
    legs = (Leg({}),)
    jobs = [Job("/run", legs, "drift", SETTINGS, number=int(each)) for each in tune_id.split()]
    return SimpleNamespace(trial_id=tune_id, config={"jobs": jobs})


class Study:
    """A memory, and a driver of the callback as Tune drives it."""

    def __init__(self, folder: Path, *names: str, known: list[TrialRecord] | None = None) -> None:
        self.known, self.out = known or [], io.StringIO()
        self.trackers = Trackers(names, folder, "dtd", self, console=Console(file=self.out, width=300))
        self.trackers.catch_up()

    def ended(self, since: int = 0) -> list[TrialRecord]:
        return self.known[since:]

    def start(self, tune_id: str) -> None:
        self.trackers.on_trial_start(0, [], tune_trial(tune_id))

    def result(self, tune_id: str, epoch: int, objective: float, **more: Any) -> None:
        figures = {"epoch": epoch, "objective": objective, "base": 60.0, "new": 40.0, "loss": 1.0 / epoch}
        result = {**figures, "seconds": 2.0 * epoch, "runs": [{}], "done": False, **more}
        self.trackers.on_trial_result(0, [], tune_trial(tune_id), result)

    def end(self, trial: TrialRecord) -> None:
        self.known.append(trial)
        self.trackers.on_step_end(0, [])


class Notes:
    """A tracker that writes down what it is told, and fails where it is told to."""

    told: list[tuple[Any, ...]]
    fails: str = ""

    def __init__(self, folder: Path, study: str, token: str) -> None:
        self._tell("open", study)
        self.tokens.append(token)

    tokens: list[str]

    def _tell(self, *what: Any) -> None:
        if what[0] == self.fails:
            raise OSError(f"no {what[0]}\nat all")
        self.told.append(what)

    def begin(self, number: int, settings: Mapping[str, Any]) -> None:
        self._tell("begin", number, dict(settings))

    def log(self, number: int, epoch: int, values: Mapping[str, float]) -> None:
        self._tell("log", number, epoch, dict(values))

    def end(self, number: int, state: str, value: float | None) -> None:
        self._tell("end", number, state, value)

    def close(self) -> None:
        self._tell("close")


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> type[Notes]:
    """Trackers named "notes" and "more", both of which write into this class."""

    class Fresh(Notes):
        told: list[tuple[Any, ...]] = []  # noqa: RUF012
        tokens: list[str] = []  # noqa: RUF012

    class More(Notes):
        told = Fresh.told
        tokens = Fresh.tokens

    monkeypatch.setitem(tracker_kinds.KINDS, "notes", Fresh)
    monkeypatch.setitem(tracker_kinds.KINDS, "more", More)
    return Fresh


def test_a_trial_is_told_from_its_start_to_its_end(tmp_path: Path, notes: type[Notes]) -> None:
    study = Study(tmp_path, "notes")
    study.start("4")
    study.result("4", 1, 50.0)
    study.start("4")  # its worker has died, and tells the first epoch again
    study.result("4", 1, 50.0)
    study.result("4", 2, 51.0, base=math.nan, new=None)
    study.end(ended(4, "COMPLETE", [50.0, 51.0]))
    study.trackers.close()
    study.trackers.close()
    assert notes.told == [
        ("open", "dtd"),
        ("begin", 4, SETTINGS),
        ("log", 4, 1, {"objective": 50.0, "base": 60.0, "new": 40.0, "loss": 1.0, "seconds": 2.0}),
        ("log", 4, 2, {"objective": 51.0, "loss": 0.5, "seconds": 4.0}),
        ("end", 4, "COMPLETE", 51.0),
        ("close",),
    ]
    assert study.out.getvalue() == ""


def test_each_member_of_a_worker_is_a_trial_of_its_own(tmp_path: Path, notes: type[Notes]) -> None:
    study = Study(tmp_path, "notes")
    study.start("2 3")
    study.result("2 3", 1, 50.0, member=1)
    study.result("2 3", 1, 49.0, member=0)
    study.result("2 3", 2, 1.0, member=0, failed="the loss is nan")
    study.end(ended(2, "FAIL", [49.0]))
    assert [what[:3] for what in notes.told[1:]] == [
        ("begin", 2, SETTINGS),
        ("begin", 3, SETTINGS),
        ("log", 3, 1),
        ("log", 2, 1),
        ("end", 2, "FAIL"),
    ]


def test_a_study_that_goes_on_tells_each_thing_once(tmp_path: Path, notes: type[Notes]) -> None:
    first = Study(tmp_path, "notes")
    for number in ("0", "1", "2"):
        first.start(number)
        first.result(number, 1, 50.0)
    first.end(ended(0, "COMPLETE", [50.0]))
    seen = len(notes.told)
    # killed: trial 1 has ended, and nobody was told; trial 2 goes on; trial 3 has never been told of
    known = [
        *first.known,
        ended(1, "PRUNED", [50.0, 40.0], base=41.0, objective=40.0, seconds=3.0),
        ended(3, "FAIL", []),
    ]
    again = Study(tmp_path, "notes", known=known)
    again.start("2")
    again.result("2", 1, 50.0)
    again.result("2", 2, 51.0)
    again.end(ended(2, "COMPLETE", [50.0, 51.0]))
    assert notes.told[seen:] == [
        ("open", "dtd"),
        ("begin", 1, {}),
        ("log", 1, 2, {"objective": 40.0, "base": 41.0, "seconds": 3.0}),
        ("end", 1, "PRUNED", None),
        ("begin", 3, {}),
        ("end", 3, "FAIL", None),
        ("begin", 2, SETTINGS),
        ("log", 2, 2, notes.told[-2][3]),
        ("end", 2, "COMPLETE", 51.0),
    ]
    assert notes.tokens[0] == notes.tokens[1], "the same runs"
    Study(tmp_path / "other", "notes")
    assert notes.tokens[2] != notes.tokens[0], "another study's runs are others"


@pytest.mark.parametrize("fails", ["open", "begin", "log", "end", "close"])
def test_a_tracker_that_fails_is_one_line_and_off(tmp_path: Path, notes: type[Notes], fails: str) -> None:
    def run(study: Study) -> None:
        study.start("0")
        study.result("0", 1, 50.0)
        study.result("0", 2, 51.0)
        study.end(ended(0, "COMPLETE", [50.0, 51.0]))
        study.trackers.close()

    notes.fails = fails
    study = Study(tmp_path, "notes", "more")
    run(study)
    line = f"warning: notes has failed and is off: no {fails} at all; the same command tells it the rest\n"
    assert study.out.getvalue() == line
    told = [what[0] for what in notes.told]
    others = ["open", "begin", "log", "log", "end", "close"]
    for what in others:
        told.remove(what)  # the other tracker heard all of it
    assert told == others[: others.index(fails)], "and this one nothing more"
    notes.fails, seen = "", len(notes.told)
    again = Study(tmp_path, "notes", "more", known=study.known)
    told = [what[:3] for what in notes.told[seen + 2 :]]
    assert (
        told
        == {
            "open": [("begin", 0, {}), ("log", 0, 1), ("log", 0, 2), ("end", 0, "COMPLETE")],
            "begin": [("begin", 0, {}), ("log", 0, 1), ("log", 0, 2), ("end", 0, "COMPLETE")],
            "log": [("begin", 0, {}), ("log", 0, 1), ("log", 0, 2), ("end", 0, "COMPLETE")],
            "end": [("begin", 0, {}), ("end", 0, "COMPLETE")],
            "close": [],
        }[fails]
    )
    assert again.out.getvalue() == ""


def test_nothing_is_asked_for_nothing_is_written(tmp_path: Path) -> None:
    study = Study(tmp_path)
    study.start("0")
    study.result("0", 1, 50.0)
    study.end(ended(0, "COMPLETE", [50.0]))
    study.trackers.close()
    assert list(tmp_path.iterdir()) == []


def test_wrong_usage_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"unknown tracker 'x': choose one of tensorboard, mlflow, wandb"):
        check_trackers(("x",))
    monkeypatch.setattr(tracker_kinds, "find_spec", {"tensorboard": "its spec"}.get)
    with pytest.raises(UserError, match=r"^mlflow is not installed: pip install '\.\[mlflow\]'$"):
        check_trackers(("mlflow",))
    check_trackers(("tensorboard",))
    for damaged in ('{"token": 1}', '{"token": "x", "told": {"mlflow": [3]}}', "[" * 100_000):
        (tmp_path / LEDGER).write_text(damaged)
        with pytest.raises(UserError, match=r"tracking\.json is damaged: remove it"):
            Study(tmp_path, "tensorboard")


# The real ones: what a user sees in them afterwards, as {trial: (settings, {epoch: objective}, state)}.
Shown = dict[int, tuple[dict[str, str], dict[int, float], str]]


def shown_by_tensorboard(folder: Path) -> Shown:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    found: Shown = {}
    for place in sorted((folder / "tensorboard").iterdir()):
        events = EventAccumulator(str(place)).Reload()
        start = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        hparams = HParamsPluginData.FromString(start).session_start_info.hparams
        settings = {key: str(getattr(v, v.WhichOneof("kind"))) for key, v in hparams.items()}
        state = events.Tensors("state/text_summary")[0].tensor_proto.string_val[0].decode()
        scalars = events.Scalars("objective")
        assert len({e.step for e in scalars}) == len(scalars), "no epoch is shown twice"
        found[int(place.name)] = (settings, {e.step: e.value for e in scalars}, state)
    return found


def shown_by_mlflow(folder: Path) -> Shown:
    with sqlite3.connect(folder / "mlflow.db") as db:
        runs = db.execute(
            "select run_uuid, t.value from runs join tags t using (run_uuid) where t.key = 'prometar.trial'"
        ).fetchall()
        found: Shown = {}
        for run, number in runs:
            assert int(number) not in found, "no trial has two runs"
            metrics = db.execute(
                "select step, value from metrics where run_uuid = ? and key = 'objective'", [run]
            ).fetchall()
            assert len(dict(metrics)) == len(metrics), "no epoch is shown twice"
            params = db.execute("select key, value from params where run_uuid = ?", [run]).fetchall()
            query = "select value from tags where key = 'state' and run_uuid = ?"
            found[int(number)] = (dict(params), dict(metrics), db.execute(query, [run]).fetchone()[0])
        status = {name for (name,) in db.execute("select status from runs")}
        assert status == {"FINISHED", "KILLED"}
    db.close()
    return found


def shown_by_wandb(folder: Path) -> Shown:
    from wandb.proto.wandb_internal_pb2 import Record

    found: Shown = {}
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        number = int(file.stem.split("-")[-1])
        settings, objectives, state = found.get(number, ({}, {}, ""))
        for data in log_records(file.read_bytes()):
            record = Record.FromString(data)
            settings |= {
                update.key: str(json.loads(update.value_json))
                for update in record.run.config.update
                if update.key != "_wandb"
            }
            values = {
                (item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item
            }
            if values:
                epoch = record.history.step.num
                assert epoch not in objectives, "no epoch is shown twice"
                objectives[epoch] = values["objective"]
            for item in record.summary.update:
                state = json.loads(item.value_json) if item.key == "state" else state
        found[number] = (settings, objectives, state)
    return found


def log_records(data: bytes) -> list[bytes]:
    """The records of a LevelDB log, in which W&B keeps a run, after its own header of seven bytes."""
    found, part, at = [], b"", 7
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            found.append(part)
            part = b""
    return found


REAL: dict[str, Callable[[Path], Shown]] = {
    "tensorboard": shown_by_tensorboard,
    "mlflow": shown_by_mlflow,
    "wandb": shown_by_wandb,
}


@pytest.mark.parametrize("name", REAL)
@pytest.mark.filterwarnings("ignore")  # their own
def test_a_real_tracker_shows_each_trial_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(name)
    for key in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_API_KEY", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "nobody"))
    monkeypatch.setattr(socket, "create_connection", refuse)
    folder = tmp_path / "study"
    first = Study(folder, name)
    for number in ("0", "1", "2"):
        first.start(number)
        for epoch in (1, 2):
            first.result(number, epoch, 50.0 + epoch)
    first.end(ended(0, "COMPLETE", [51.0, 52.0]))
    first.trackers.close()
    if name != "wandb":  # killed between an epoch and its note in the ledger: it is told again
        ledger = json.loads((folder / LEDGER).read_text())
        ledger["told"][name]["2"]["epoch"] = 1
        (folder / LEDGER).write_text(json.dumps(ledger))
    again = Study(folder, name, known=[*first.known, ended(1, "PRUNED", [51.0, 52.0])])
    again.start("2")
    for epoch in (1, 2, 3):
        again.result("2", epoch, 50.0 + epoch)
    again.end(ended(2, "COMPLETE", [51.0, 52.0, 53.0]))
    again.trackers.close()
    assert first.out.getvalue() + again.out.getvalue() == ""
    found = REAL[name](folder)
    flip = "1.0" if name == "tensorboard" else "True"
    settings = {"regularizer.kind": "l1", "optim.lr": "0.0025", "augment.flip": flip}
    assert found[0] == (settings, {1: 51.0, 2: 52.0}, "COMPLETE")
    assert found[2] == (settings, {1: 51.0, 2: 52.0, 3: 53.0}, "COMPLETE")
    assert found[1][1:] == ({1: 51.0, 2: 52.0}, "PRUNED")
    assert sorted(found) == [0, 1, 2]


def refuse(address: Any, *args: Any, **options: Any) -> None:
    raise AssertionError(f"something is sent to {address}")
