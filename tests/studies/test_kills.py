"""A study whose processes are killed ends with the same results. Processes, signals and files are real."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest

from prometar.cli.console import INTERRUPTED
from prometar.errors import PrometarError
from tests.support.databases import open_study
from tests.support.driver import NAME, Driver, forget_hanging, misbehave, options_of, run_fake
from tests.support.fake_trial import HANGS
from tests.support.processes import listening
from tests.support.witness import NO_LOSSES, Witness, num_epochs, outcome
from tune.store.trial_store import SECONDS

OPTIONS = ("--trials", 5, "--top", 1, "--final-seeds", 1)
EPOCHS_PER_RUN = 3
NUM_TRIALS = 5
NUM_CONFIRMATION_RUNS = 2 * 2
"""The default settings and the best ones, with two seeds each."""
NUM_FINAL_RUNS = 2
"""The default settings and the selected ones, with one seed each."""
NUM_EPOCHS = EPOCHS_PER_RUN * (NUM_TRIALS + NUM_CONFIRMATION_RUNS + NUM_FINAL_RUNS)
STOPPING = "Stopping after the current epoch."
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1, the same address in IPv6, and ::1, as /proc/net/tcp and /proc/net/tcp6 write them."""


@dataclass(frozen=True)
class DisturbedStudy:
    """A study in OUT/fake that several drivers start and resume, one after the other."""

    out: Path
    witness: Witness

    @property
    def trials(self) -> Path:
        """Folder of the trials."""
        return self.out / NAME / "trials"

    def start(self, *more_options: object) -> Driver:
        """Start or resume the study in a new driver."""
        return Driver(self.out, *OPTIONS, "--max-concurrent", 1, *more_options)

    def optuna_study(self) -> optuna.Study:
        """Return the study as the database has it."""
        return open_study(f"sqlite:///{self.out / NAME / 'study.db'}", NAME)

    def states(self) -> list[str]:
        """Return the states of all trials, ordered by number."""
        return [trial.state.name for trial in self.optuna_study().trials]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the study finds when nobody disturbs it."""
    out = tmp_path_factory.mktemp("undisturbed")
    run_fake(out, **options_of(*OPTIONS))
    assert num_epochs(out) == NUM_EPOCHS
    return outcome(out)


def test_a_study_whose_processes_are_killed_again_and_again_loses_nothing(
    tmp_path: Path, expected: dict[str, Any], ray_local: str
) -> None:
    """One study meets all interruptions, because each start of processes takes seconds."""
    study = DisturbedStudy(tmp_path, Witness(tmp_path))

    _interrupt_with_a_signal(study)
    _kill_a_worker_and_the_driver(study, ray_local)
    _kill_the_driver_in_the_final_test(study, ray_local)
    forget_hanging(tmp_path)
    misbehave(tmp_path, {})
    run_fake(tmp_path, **options_of(*OPTIONS))

    assert (tmp_path / NAME / "report.html").read_text().rstrip().endswith("</html>")
    assert study.witness.losses(expected) == NO_LOSSES
    assert num_epochs(tmp_path) == NUM_EPOCHS, "no epoch is run again once its state is kept"


def _interrupt_with_a_signal(study: DisturbedStudy) -> None:
    """Send SIGTERM to a driver with its own Ray, in the second epoch of trial 1."""
    misbehave(study.out, {"1": "hang"})
    with study.start() as driver:
        driver.wait_until((study.trials / "0001" / HANGS).exists)

        # Ray listens on this machine only.
        addresses = listening(driver.process.pid)
        assert len(addresses) > 3, "Ray has several servers"
        assert set(addresses) <= LOOPBACK

        # No other process may run the study at the same time.
        with pytest.raises(PrometarError, match="process"):
            run_fake(study.out, **options_of(*OPTIONS))

        # The driver ends after the running epoch.
        driver.process.send_signal(signal.SIGTERM)
        driver.wait_until(lambda: STOPPING in driver.said())
        misbehave(study.out, {})
        assert driver.wait() == INTERRUPTED, driver.errors()
        assert driver.said().count(STOPPING) == 1

    assert study.witness.look() == 1, "trial 0 has ended"
    assert study.states() == ["COMPLETE", "WAITING"]
    stored = study.optuna_study()
    assert list(stored.trials[1].intermediate_values) == [1, 2], "the epoch that ended is stored"
    assert stored.user_attrs[SECONDS] > 0, "the time that --max-hours limits"


def _kill_a_worker_and_the_driver(study: DisturbedStudy, address: str) -> None:
    """Kill the worker of trial 2, then the driver in trial 3. Ray goes on without them."""
    forget_hanging(study.out)
    misbehave(study.out, {"2": "hang", "3": "hang"})
    with study.start("--address", address) as driver:
        driver.wait_until((study.trials / "0002" / HANGS).exists)
        assert "Resuming: 1 done, 1 interrupted" in driver.said()

        # Another worker continues the trial from its last epoch.
        killed = int((study.trials / "0002/pid").read_text())
        misbehave(study.out, {"3": "hang"})
        os.kill(killed, signal.SIGKILL)
        driver.wait_until((study.trials / "0003" / HANGS).exists)
        assert int((study.trials / "0002/pid").read_text()) != killed
        assert (study.trials / "0002/steps.log").read_text().split() == ["1", "2", "3"]
        assert "failed" not in driver.said()

        assert driver.kill() == -signal.SIGKILL

    assert study.witness.look() == 3, "trials 0, 1 and 2 have ended"
    assert study.states() == ["COMPLETE"] * 3 + ["RUNNING"]


def _kill_the_driver_in_the_final_test(study: DisturbedStudy, address: str) -> None:
    forget_hanging(study.out)
    run = "trial-0000-textures-seed1"
    misbehave(study.out, {run: "hang"})
    with study.start("--address", address) as driver:
        driver.wait_until((study.out / NAME / "finals" / run / HANGS).exists)
        assert driver.kill() == -signal.SIGKILL
    assert study.witness.look() >= NUM_TRIALS + NUM_CONFIRMATION_RUNS
