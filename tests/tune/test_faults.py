"""A study survives its trials, its workers and its driver; on Ray, with trials that do not train."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from prometar.console import INTERRUPTED
from prometar.errors import UserError, WorkError
from tests.tune.driver import NAME, records, run_fake, small_request
from tests.tune.fake_trial import BEHAVIOUR
from tune.folder import StudyFolder
from tune.memory import HOPELESS, Memory, open_study

ROOT = Path(__file__).parents[2]


def steps(out: Path, number: int) -> list[int]:
    """Epochs that a trial really ran, in order."""
    return [int(line) for line in (out / NAME / f"trials/{number:04d}/steps.log").read_text().split()]


def states(out: Path) -> Counter[str]:
    """Trials by state, as the database has them."""
    study = open_study(f"sqlite:///{out / NAME / 'study.db'}", NAME)
    return Counter(t.state.name for t in study.trials)


@pytest.mark.usefixtures("ray_local")
def test_every_kind_of_trial_ends_with_a_record(tmp_path: Path) -> None:
    behaviour = {
        "1": "nan", "2": "missing", "3": "fail", "4": "crash", "5": "crash-always", "13": "bad"
    }  # fmt: skip
    request = small_request(trials=14, pruner="median", final_seeds=(1, 2, 3))
    finals, text = run_fake(tmp_path, request, behaviour=behaviour)
    found = records(tmp_path)
    assert [r["number"] for r in found] == list(range(14))
    reasons = {r["number"]: r["reason"] for r in found if r["state"] == "FAIL"}
    assert sorted(reasons) == [1, 2, 3, 5]
    assert reasons[1] == "the objective is nan in epoch 1"
    assert reasons[2] == "the trial reported no objective"
    assert reasons[3].startswith("the loss is nan in step 7, with {'regularizer.kind'")
    assert reasons[5]
    assert found[0]["reference"]
    assert found[0]["state"] == "COMPLETE"
    assert found[4]["state"] == "COMPLETE", "a worker that died once is tried again"
    assert steps(tmp_path, 4) == [1, 2, 3], "and goes on from its own checkpoint"
    assert found[13]["state"] == "PRUNED"
    assert len(found[13]["epochs"]) < 3
    counts = states(tmp_path)
    assert counts["FAIL"] == 4
    assert counts["COMPLETE"] + counts["PRUNED"] == 10

    best = max((r for r in found if r["state"] == "COMPLETE"), key=lambda r: r["objective"])
    assert finals["best"]["number"] == best["number"]
    assert [run["seed"] for run in finals["best"]["runs"]] == [1, 2, 3]
    assert finals["shown"]
    assert finals["difference"]["low"] == pytest.approx(best["objective"] - found[0]["objective"])
    assert "4 failed" in text

    again, text = run_fake(tmp_path, request, behaviour={"all": "raise"})
    assert again == finals, "nothing is run twice"
    assert records(tmp_path) == found


@pytest.mark.usefixtures("ray_local")
def test_more_trials_extend_a_study_and_other_settings_are_refused(tmp_path: Path) -> None:
    run_fake(tmp_path, small_request(trials=2))
    first = records(tmp_path)
    finals, text = run_fake(tmp_path, small_request(trials=5, final_seeds=(1,)))
    assert records(tmp_path)[:2] == first
    assert states(tmp_path) == {"COMPLETE": 5}
    assert "going on: 2 trials are done, 0 were interrupted" in text
    assert finals["difference"] is None
    with pytest.raises(UserError, match=r"made with other settings \(.*train\.epochs: 3 then, 4 now"):
        run_fake(tmp_path, small_request(trials=5, epochs=4))


@pytest.mark.usefixtures("ray_local")
def test_a_study_where_everything_fails_ends_early_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"its trials fail: the loss is nan in step 7"):
        run_fake(tmp_path, small_request(trials=12), behaviour={"all": "fail"})
    failed = len(records(tmp_path))
    assert HOPELESS <= failed <= HOPELESS + 1  # one may have been running
    run_fake(tmp_path, small_request(trials=12), behaviour={})
    assert states(tmp_path) == {"FAIL": failed, "COMPLETE": 12}, "what failed before is run again"


def test_a_second_driver_is_refused(tmp_path: Path) -> None:
    with StudyFolder(tmp_path, NAME).locked(), pytest.raises(WorkError, match=f"by process {os.getpid()}"):
        run_fake(tmp_path, small_request())


def test_a_shared_storage_does_not_mix_studies(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    open_study(storage, NAME, create=True).set_user_attr("identity", small_request(epochs=9).identity)
    with pytest.raises(UserError, match=r"train\.epochs: 9 then, 3 now"):
        run_fake(tmp_path, small_request(), storage=storage)


class Driver:
    """A driver in a process group of its own, so that it can be ended with all of its Ray."""

    def __init__(self, out: Path, trials: int) -> None:
        command = [sys.executable, "-m", "tests.tune.driver", str(out), str(trials)]
        self._process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)

    def wait_until(self, condition: Callable[[], Any], timeout_seconds: float = 90) -> None:
        end = time.monotonic() + timeout_seconds
        while not condition():
            assert self._process.poll() is None, "the driver ended by itself"
            assert time.monotonic() < end, "the driver made no progress"
            time.sleep(0.05)

    def end(self, sig: signal.Signals) -> int:
        """Send a signal to the driver alone; what it leaves of Ray is ended too. Returns its status."""
        self._process.send_signal(sig)
        try:
            return self._process.wait(timeout=60)
        finally:
            self._sweep()

    def _sweep(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGINT])
def test_a_driver_that_is_stopped_in_the_middle_goes_on(tmp_path: Path, sig: signal.Signals) -> None:
    folder = tmp_path / NAME
    folder.mkdir()
    (folder / BEHAVIOUR).write_text(json.dumps({"2": "sleep2", "3": "sleep2"}))
    driver = Driver(tmp_path, trials=4)
    driver.wait_until((folder / "trials/0002/steps.log").exists)
    status = driver.end(sig)
    assert status == (-signal.SIGKILL if sig == signal.SIGKILL else INTERRUPTED)
    before = states(tmp_path)
    assert before["RUNNING"] >= 1, "the test came too late"
    assert before["COMPLETE"] >= 1
    study = open_study(f"sqlite:///{folder / 'study.db'}", NAME)
    drawn = [t.params for t in study.trials]

    _, text = run_fake(tmp_path, small_request(trials=4))
    assert f"{before['RUNNING']} were interrupted" in text
    assert states(tmp_path) == {"COMPLETE": 4}
    found = records(tmp_path)
    assert [r["number"] for r in found] == [0, 1, 2, 3]
    assert [r["settings"] for r in found][: len(drawn)] == drawn
    assert len({json.dumps(r["settings"]) for r in found}) == 4
    for number in range(4):
        assert sorted(set(steps(tmp_path, number))) == [1, 2, 3]
        told = [e["epoch"] for e in found[number]["epochs"]]
        # An epoch that was run, but not told before the driver died, is not run again only to be told.
        assert told in ([1, 2, 3], [2, 3], [1, 3], [3])


@pytest.mark.usefixtures("ray_local")
def test_a_store_lost_in_the_middle_is_one_line_and_the_study_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_: Any) -> bool:
        raise OperationalError("UPDATE trials", {}, Exception("database is locked"))

    with monkeypatch.context() as patched:
        patched.setattr(Memory, "observe", lose)
        with pytest.raises(WorkError, match=r"has stopped: .*database is locked.*the same command") as caught:
            run_fake(tmp_path, small_request(trials=3))
    assert "\n" not in str(caught.value)
    run_fake(tmp_path, small_request(trials=3))
    assert states(tmp_path) == {"COMPLETE": 3}
