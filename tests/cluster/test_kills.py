"""A study whose processes are killed ends as if nothing had happened; real processes, signals and files."""

import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prometar.cli.console import INTERRUPTED
from prometar.errors import PrometarError
from tests.support.databases import open_study
from tests.support.driver import NAME, Driver, forget_hanging, misbehave, options_of, run_fake
from tests.support.fake_trial import HANGS, FakeTrial
from tests.support.witness import NO_LOSSES, Witness, num_epochs, outcome
from tune.execution.worker import Task
from tune.store.trial_store import SECONDS

TRIALS = 6
ASKED = ("--trials", TRIALS, "--top", 1, "--final-seeds", 1, 2)
STUDY = (*ASKED, "--max-concurrent", 1)  # so that trials end in the same order, and are drawn from the same
STOPPING = "Stopping after the current epoch of each running trial."
EPOCHS = 3 * (TRIALS + 4 + 4)  # confirmation and finals: two settings with two seeds each


def go_on(out: Path) -> str:
    """The same study once more, in this process. Returns what it says."""
    return run_fake(out, **options_of(*ASKED))[1]


@pytest.fixture(scope="module")
def expected(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the study finds when nobody disturbs it."""
    out = tmp_path_factory.mktemp("undisturbed")
    go_on(out)
    assert num_epochs(out) == EPOCHS
    return outcome(out)


def assert_whole(witness: Witness, out: Path, expected: dict[str, Any]) -> None:
    assert witness.losses(expected) == NO_LOSSES
    assert num_epochs(out) <= EPOCHS, "no epoch is run again once its state is kept"


def states(out: Path) -> Counter[str]:
    study = open_study(f"sqlite:///{out / NAME / 'study.db'}", NAME)
    return Counter(t.state.name for t in study.trials)


@dataclass
class Life:
    """One study that is disturbed again and again; each disturbance is a driver's."""

    out: Path
    witness: Witness
    draw: random.Random
    ray: str

    def driver(self, behaviour: dict[str, str], *options: object) -> Driver:
        """Goes on with the study, with a Ray of its own; its trials and runs, by name, behave so."""
        forget_hanging(self.out)  # an earlier driver's
        misbehave(self.out, behaviour)
        return Driver(self.out, *STUDY, *options)

    def joined(self, behaviour: dict[str, str], *options: object) -> Driver:
        """The same, on a Ray that outlives the driver."""
        return self.driver(behaviour, "--address", self.ray, *options)

    def hangs(self, run: str) -> bool:
        return (self.out / NAME / run / HANGS).exists()

    def assert_waits(self, completed: int) -> None:
        """Trials that have ended are kept, and the one that was interrupted waits."""
        self.witness.look()
        assert states(self.out) == {"COMPLETE": completed, "WAITING": 1}


def a_signal_to_its_ray_too_ends_it_at_once(life: Life) -> None:
    with life.driver({"1": "hang"}) as driver:
        driver.wait_until(lambda: life.hangs("trials/0001"))
        os.killpg(driver.process.pid, signal.SIGTERM)
        assert driver.process.wait() == INTERRUPTED, driver.errors()
        assert (
            driver.said().splitlines()[-1]
            == "Interrupted, and Ray has ended too. Rerun the same command to resume."
        )
        assert not driver.errors(), "Ray has had no time for a word of its own"
    life.witness.look()


def a_signal_lets_the_running_epochs_end_and_nobody_runs_it_twice(life: Life) -> None:
    with life.driver({"1": "hang"}) as driver:
        driver.wait_until(lambda: life.hangs("trials/0001"))
        with pytest.raises(PrometarError) as second:
            go_on(life.out)
        assert "process" in str(second.value)
        stop(driver, signal.SIGTERM)
        time.sleep(1)
        misbehave(life.out, {})
        assert driver.wait() == INTERRUPTED, driver.errors()
        assert driver.said().count(STOPPING) == 1
    life.assert_waits(1)
    study = open_study(f"sqlite:///{life.out / NAME / 'study.db'}", NAME)
    took = study.trials[0].duration
    assert took is not None
    searched = study.user_attrs[SECONDS]
    assert searched > took.total_seconds() + 1, "for --max-hours, also what came after the last ended trial"
    assert list(study.trials[1].intermediate_values) == [1, 2], "what has ended is told"


def killed_while_it_starts_or_soon_after(life: Life) -> None:
    with life.driver({"2": "hang"}) as driver:
        time.sleep(life.draw.uniform(0, 8))
        assert driver.kill() == -signal.SIGKILL
    life.witness.look()


def a_killed_worker_is_replaced_and_a_second_signal_waits_for_nothing(life: Life) -> None:
    folder = life.out / NAME / "trials/0002"
    with life.joined({"2": "hang", "3": "hang"}) as driver:
        driver.wait_until(lambda: life.hangs("trials/0002"))
        killed = int((folder / "pid").read_text())
        os.kill(killed, signal.SIGKILL)
        misbehave(life.out, {"3": "hang"})
        driver.wait_until(lambda: life.hangs("trials/0003"))
        assert int((folder / "pid").read_text()) != killed
        assert (folder / "steps.log").read_text().split() == ["1", "2", "3"], "from its state on, and once"
        assert "failed" not in driver.said()
        stop(driver, signal.SIGINT)
        assert driver.end(signal.SIGTERM) == INTERRUPTED, driver.errors()
    life.assert_waits(3)


def killed_somewhere_in_the_search(life: Life) -> None:
    epochs, later = life.draw.randrange(num_epochs(life.out) + 1, 3 * TRIALS), life.draw.uniform(0, 0.2)
    with life.joined({"all": "sleep0.2"}) as driver:
        driver.wait_until(lambda: num_epochs(life.out) >= epochs)
        assert "Resuming: 3 trials finished, 1 interrupted" in driver.said()
        time.sleep(later)
        assert driver.kill() == -signal.SIGKILL, f"{later:.3f} s after epoch {epochs}"
    life.witness.look()


def killed_in_every_later_stage(life: Life) -> None:
    seen = [life.witness.look()]
    for run in ("confirmation/trial-0000-seed1001", "finals/trial-0000-textures-seed2"):
        with life.joined({Path(run).name: "hang"}) as driver:
            driver.wait_until(lambda run=run: life.hangs(run))
            assert driver.kill() == -signal.SIGKILL
        seen.append(life.witness.look())
    with life.joined({}, "--die-in-report") as driver:
        assert driver.wait() == -signal.SIGKILL, driver.errors()
    assert not (life.out / NAME / "report.html").exists(), "no half report"
    seen.append(life.witness.look())
    assert seen == sorted(set(seen)), "more was finished each time"


def stop(driver: Driver, sig: signal.Signals) -> None:
    driver.process.send_signal(sig)
    driver.wait_until(lambda: STOPPING in driver.said())


def test_a_study_that_is_disturbed_again_and_again(
    tmp_path: Path, expected: dict[str, Any], ray_local: str
) -> None:
    """One study for all of it, and one Ray for most: starting them is what takes the time."""
    life = Life(tmp_path, Witness(tmp_path), random.Random(11), ray_local)
    a_signal_to_its_ray_too_ends_it_at_once(life)
    a_signal_lets_the_running_epochs_end_and_nobody_runs_it_twice(life)
    killed_while_it_starts_or_soon_after(life)
    a_killed_worker_is_replaced_and_a_second_signal_waits_for_nothing(life)
    killed_somewhere_in_the_search(life)
    killed_in_every_later_stage(life)
    forget_hanging(tmp_path)
    go_on(tmp_path)
    assert (tmp_path / NAME / "report.html").read_text().rstrip().endswith("</html>")
    assert_whole(life.witness, tmp_path, expected)


class DiesWhenHandedOver(FakeTrial):
    """A worker that is killed while it gets ready for one of these, once each."""

    dying = ("0001", "0004", "trial-0000-seed1001", "trial-0000-textures-seed2")

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        task: Task = new_config["task"]
        folder = task.folder
        if folder.name in self.dying and not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().reset_config(new_config)


def test_a_worker_killed_between_two_trials_costs_none(tmp_path: Path, expected: dict[str, Any]) -> None:
    _, text = run_fake(tmp_path, behaviour={}, trainable=DiesWhenHandedOver, **options_of(*ASKED))
    died = {file.parent.name for file in (tmp_path / NAME).glob("*/*/died")}
    assert died == set(DiesWhenHandedOver.dying)
    assert "failed: " not in text
    assert_whole(Witness(tmp_path), tmp_path, expected)
