"""A study whose processes are killed ends as if nothing had happened; real processes, signals and files."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prometar.cli.console import INTERRUPTED
from tests.support.driver import NAME, Driver, misbehave, run_fake, spec_of
from tests.support.fake_trial import HANGS, FakeTrial
from tests.support.witness import NO_LOSSES, Witness, num_epochs, outcome
from tune.jobs.spec import unpack
from tune.optimizer.ask_tell import SEARCHED, curve_of
from tune.optimizer.storage import open_study

TRIALS = 5
ASKED = ("--trials", TRIALS, "--top", 1, "--final-seeds", 1, 2)
STUDY = (*ASKED, "--max-concurrent", 1)  # so that trials end in the same order, and are drawn from the same
HANGING = f"{NAME}/trials/0001/{HANGS}"
STOPPING = "stopping when each running trial has ended its epoch; once more: now"
EPOCHS = 3 * (TRIALS + 4 + 4)  # last round and finals: two settings with two seeds each


def go_on(out: Path) -> str:
    """The same study once more, in this process. Returns what it says."""
    return run_fake(out, spec_of(*ASKED), behaviour={}, max_concurrent=1)[1]


@pytest.fixture(scope="module")
def expected(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the study finds when nobody disturbs it."""
    out = tmp_path_factory.mktemp("undisturbed")
    go_on(out)
    assert num_epochs(out) == EPOCHS
    return outcome(out)


def assert_whole(witness: Witness, out: Path, expected: dict[str, Any], what: str = "") -> None:
    assert witness.losses(expected) == NO_LOSSES, what
    assert num_epochs(out) <= EPOCHS, f"no epoch is run again once its state is kept {what}"


def states(out: Path) -> Counter[str]:
    study = open_study(f"sqlite:///{out / NAME / 'study.db'}", NAME)
    return Counter(t.state.name for t in study.trials)


def test_the_driver_killed_at_random_moments(tmp_path: Path, expected: dict[str, Any]) -> None:
    misbehave(tmp_path, {"all": "sleep0.2"})
    draw, witness = random.Random(11), Witness(tmp_path)
    moments = [(0, draw.uniform(0, 3))]  # the first while Ray starts, or soon after
    moments += [(epochs, draw.uniform(0, 0.2)) for epochs in sorted(draw.sample(range(1, EPOCHS - 3), 4))]
    for epochs, later in moments:
        with Driver(tmp_path, *STUDY) as driver:
            driver.wait_until((tmp_path / NAME / "study.db").exists)
            driver.wait_until(lambda epochs=epochs: num_epochs(tmp_path) >= epochs)
            time.sleep(later)
            assert driver.kill() == -signal.SIGKILL, f"{later:.3f} s after epoch {epochs} of {EPOCHS}"
            witness.look()
    with Driver(tmp_path, *STUDY) as driver:
        assert driver.wait() == 0, driver.errors()
    assert_whole(witness, tmp_path, expected, f"killed (epochs, and seconds later): {moments}")


def test_the_driver_killed_in_every_later_stage(tmp_path: Path, expected: dict[str, Any]) -> None:
    witness, seen = Witness(tmp_path), [0]
    for run in ("lastround/trial-0000-seed1001", "finals/trial-0000-textures-seed2"):
        misbehave(tmp_path, {Path(run).name: "hang"})
        with Driver(tmp_path, *STUDY) as driver:
            driver.wait_until((tmp_path / NAME / run / HANGS).exists)
            assert driver.kill() == -signal.SIGKILL
            seen.append(witness.look())
    misbehave(tmp_path, {})
    with Driver(tmp_path, *STUDY, "--die-in-report") as driver:
        assert driver.wait() == -signal.SIGKILL, driver.errors()
        assert not (tmp_path / NAME / "report.html").exists(), "no half report"
        seen.append(witness.look())
    assert seen == sorted(set(seen)), "more was finished each time"
    go_on(tmp_path)
    assert (tmp_path / NAME / "report.html").read_text().rstrip().endswith("</html>")
    assert_whole(witness, tmp_path, expected)


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_running_epochs_end(
    sig: signal.Signals, tmp_path: Path, expected: dict[str, Any]
) -> None:
    misbehave(tmp_path, {"1": "hang"})
    witness = Witness(tmp_path)
    with Driver(tmp_path, *STUDY) as driver:
        driver.wait_until((tmp_path / HANGING).exists)
        driver.process.send_signal(sig)
        driver.wait_until(lambda: STOPPING in driver.said())
        time.sleep(1)
        misbehave(tmp_path, {})
        assert driver.wait() == INTERRUPTED, driver.errors()
        assert driver.said().count(STOPPING) == 1
        witness.look()
    assert states(tmp_path) == {"COMPLETE": 1, "WAITING": 1}
    study = open_study(f"sqlite:///{tmp_path / NAME / 'study.db'}", NAME)
    took = study.trials[0].duration
    assert took is not None
    searched = study.user_attrs[SEARCHED]
    assert searched > took.total_seconds() + 1, "for --max-hours, also what came after the last ended trial"
    assert list(curve_of(study.trials[1])) == [1, 2], "what has ended is told"
    assert "going on: 1 trials are done, 1 were interrupted" in go_on(tmp_path)
    assert_whole(witness, tmp_path, expected)


def test_a_second_signal_waits_for_nothing(tmp_path: Path, expected: dict[str, Any]) -> None:
    misbehave(tmp_path, {"1": "hang"})
    witness = Witness(tmp_path)
    with Driver(tmp_path, *STUDY) as driver:
        driver.wait_until((tmp_path / HANGING).exists)
        driver.process.send_signal(signal.SIGTERM)
        driver.wait_until(lambda: STOPPING in driver.said())
        assert driver.end(signal.SIGINT) == INTERRUPTED, driver.errors()
        witness.look()
    assert states(tmp_path) == {"COMPLETE": 1, "WAITING": 1}
    assert "1 were interrupted" in go_on(tmp_path)
    assert_whole(witness, tmp_path, expected)


def test_a_killed_worker_is_replaced_and_its_trial_goes_on(tmp_path: Path, expected: dict[str, Any]) -> None:
    misbehave(tmp_path, {"1": "hang"})
    folder = tmp_path / NAME / "trials/0001"
    with Driver(tmp_path, *STUDY) as driver:
        driver.wait_until((tmp_path / HANGING).exists)
        killed = int((folder / "pid").read_text())
        os.kill(killed, signal.SIGKILL)
        misbehave(tmp_path, {})
        assert driver.wait() == 0, driver.errors()
        assert "failed" not in driver.said().replace("0 failed", "")
    assert int((folder / "pid").read_text()) != killed
    assert (folder / "steps.log").read_text().split() == ["1", "2", "3"], "from its state on, and once"
    assert_whole(Witness(tmp_path), tmp_path, expected)


class DiesWhenHandedOver(FakeTrial):
    """A worker that is killed while it gets ready for one of these, once each."""

    dying = ("0001", "0004", "trial-0000-seed1001", "trial-0000-textures-seed2")

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        folder = Path(unpack(new_config)[0].run_dir)
        if folder.name in self.dying and not (folder / "died").exists():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().reset_config(new_config)


def test_a_worker_killed_between_two_trials_costs_none(tmp_path: Path, expected: dict[str, Any]) -> None:
    _, text = run_fake(
        tmp_path, spec_of(*ASKED), behaviour={}, trainable=DiesWhenHandedOver, max_concurrent=1
    )
    died = {file.parent.name for file in (tmp_path / NAME).glob("*/*/died")}
    assert died == set(DiesWhenHandedOver.dying)
    assert "failed: " not in text
    assert_whole(Witness(tmp_path), tmp_path, expected)


def test_a_study_that_runs_is_not_run_twice(tmp_path: Path, expected: dict[str, Any]) -> None:
    misbehave(tmp_path, {"1": "hang"})
    with Driver(tmp_path, *STUDY) as driver:
        driver.wait_until((tmp_path / HANGING).exists)
        with Driver(tmp_path, *STUDY) as second:
            assert second.wait() == 1
            assert second.errors().strip() == (
                f"the study {tmp_path / NAME} is being run by process {driver.process.pid}"
            )
        misbehave(tmp_path, {})
        assert driver.wait() == 0, driver.errors()
    assert_whole(Witness(tmp_path), tmp_path, expected)
