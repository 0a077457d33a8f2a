"""A study whose processes are killed ends as if nothing had happened; real processes, signals and files."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from prometar.cli.console import INTERRUPTED
from prometar.errors import PrometarError
from tests.support.databases import open_study
from tests.support.driver import NAME, Driver, forget_hanging, misbehave, options_of, run_fake
from tests.support.fake_trial import HANGS
from tests.support.processes import listening
from tests.support.witness import NO_LOSSES, Witness, num_epochs, outcome
from tune.store.trial_store import SECONDS

ASKED = ("--trials", 5, "--top", 1, "--final-seeds", 1)
EPOCHS = 3 * (5 + 4 + 2)  # two settings are confirmed with two seeds each, and tested with one
STOPPING = "Stopping after the current epoch."
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the study finds when nobody disturbs it."""
    out = tmp_path_factory.mktemp("undisturbed")
    run_fake(out, **options_of(*ASKED))
    assert num_epochs(out) == EPOCHS
    return outcome(out)


def states(out: Path) -> list[str]:
    study = open_study(f"sqlite:///{out / NAME / 'study.db'}", NAME)
    return [trial.state.name for trial in study.trials]


def test_a_study_disturbed_again_and_again(tmp_path: Path, expected: dict[str, Any], ray_local: str) -> None:
    """One study for all of it, because starting processes takes the time."""
    witness = Witness(tmp_path)
    trials = tmp_path / NAME / "trials"
    driver_options = (tmp_path, *ASKED, "--max-concurrent", 1)

    # A signal ends the running epoch, nobody else may run the study, and its own Ray is this machine's alone.
    misbehave(tmp_path, {"1": "hang"})
    with Driver(*driver_options) as driver:
        driver.wait_until((trials / "0001" / HANGS).exists)
        addresses = listening(driver.process.pid)
        assert len(addresses) > 3, "Ray has servers"
        assert set(addresses) <= LOOPBACK
        with pytest.raises(PrometarError, match="process"):
            run_fake(tmp_path, **options_of(*ASKED))
        driver.process.send_signal(signal.SIGTERM)
        driver.wait_until(lambda: STOPPING in driver.said())
        misbehave(tmp_path, {})
        assert driver.wait() == INTERRUPTED, driver.errors()
        assert driver.said().count(STOPPING) == 1
    assert witness.look() == 1
    assert states(tmp_path) == ["COMPLETE", "WAITING"]
    study = open_study(f"sqlite:///{tmp_path / NAME / 'study.db'}", NAME)
    assert list(study.trials[1].intermediate_values) == [1, 2], "what has ended is told"
    assert study.user_attrs[SECONDS] > 0, "for --max-hours"

    # A worker is killed, and then the driver, on a Ray that outlives it.
    forget_hanging(tmp_path)
    misbehave(tmp_path, {"2": "hang", "3": "hang"})
    with Driver(*driver_options, "--address", ray_local) as driver:
        driver.wait_until((trials / "0002" / HANGS).exists)
        assert "Resuming: 1 done, 1 interrupted" in driver.said()
        killed = int((trials / "0002/pid").read_text())
        misbehave(tmp_path, {"3": "hang"})
        os.kill(killed, signal.SIGKILL)
        driver.wait_until((trials / "0003" / HANGS).exists)
        assert int((trials / "0002/pid").read_text()) != killed
        assert (trials / "0002/steps.log").read_text().split() == ["1", "2", "3"], "from its state on, once"
        assert "failed" not in driver.said()
        assert driver.kill() == -signal.SIGKILL
    assert witness.look() == 3
    assert states(tmp_path) == ["COMPLETE"] * 3 + ["RUNNING"]

    # The driver is killed in a later stage.
    forget_hanging(tmp_path)
    misbehave(tmp_path, {"trial-0000-textures-seed1": "hang"})
    with Driver(*driver_options, "--address", ray_local) as driver:
        driver.wait_until((tmp_path / NAME / "finals/trial-0000-textures-seed1" / HANGS).exists)
        assert driver.kill() == -signal.SIGKILL
    assert witness.look() >= 5 + 4
    forget_hanging(tmp_path)
    misbehave(tmp_path, {})
    run_fake(tmp_path, **options_of(*ASKED))
    assert (tmp_path / NAME / "report.html").read_text().rstrip().endswith("</html>")
    assert witness.losses(expected) == NO_LOSSES
    assert num_epochs(tmp_path) == EPOCHS, "no epoch is run again once its state is kept"
