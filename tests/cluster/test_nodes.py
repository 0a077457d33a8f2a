"""A study on a cluster whose machines die. Each machine is a Ray node here."""

from pathlib import Path

import pytest

from tests.support.driver import NAME, Driver, misbehave, options_of, run_fake
from tests.support.fake_trial import HANGS
from tests.support.nodes import Cluster
from tests.support.witness import NO_LOSSES, Witness, num_epochs, outcome

# Settings of the random sampler do not depend on the order in which concurrent trials end.
OPTIONS = ("--trials", 4, "--sampler", "random", "--final-seeds", 1, "--max-concurrent", 2)
RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""How long a driver looks for a head that has died, in seconds. Ray's default is 60."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")


def hanging_trials(cluster: Cluster, out: Path) -> dict[int, int]:
    """Return the number of the trial that hangs in its second epoch, by the node on which it runs."""
    trials = {}
    for mark in out.glob(f"{NAME}/trials/*/{HANGS}"):
        node = cluster.node_of(int(mark.read_text()))
        if node is not None:
            trials[node] = int(mark.parent.name)
    return trials


def test_a_study_outlives_the_death_of_a_node_and_then_of_the_head(tmp_path: Path) -> None:
    """One study meets both, because each start of a cluster and a driver takes seconds."""
    out = tmp_path / "out"
    undisturbed = tmp_path / "undisturbed"
    run_fake(undisturbed, **options_of(*OPTIONS))
    misbehave(out, {"1": "hang", "2": "hang"})
    witness = Witness(out)
    with (
        Cluster(1, head=1) as cluster,
        Driver(out, *OPTIONS, "--address", cluster.address, env=cluster.env | {RECONNECT: "5"}) as driver,
    ):
        head, other = cluster.nodes
        driver.wait_until(lambda: hanging_trials(cluster, out).keys() == {head, other})
        assert "2 concurrent trials (--max-concurrent), each with 1 CPU" in driver.said()

        # A node dies, and another one joins. The trial of the dead node continues on the new one, because the
        # head has no free CPU.
        interrupted_trial = hanging_trials(cluster, out)[other]
        cluster.kill(other)
        joined = cluster.add(1)
        driver.wait_until(lambda: joined in hanging_trials(cluster, out))
        assert hanging_trials(cluster, out)[joined] == interrupted_trial
        assert witness.look() == 1, "trial 0 has ended"

        # The head dies, and the driver stops with one line.
        cluster.kill_head()
        assert driver.wait() == 1
        (line,) = driver.errors().strip().splitlines()
        assert "Failed to connect to GCS within 5 seconds" in line
        assert witness.look() == 1

    # The study resumes without the cluster, and finds what it would have found.
    _, printed = run_fake(out, behaviour={}, **options_of(*OPTIONS))
    assert "Resuming: 1 done, 2 interrupted" in printed
    assert witness.losses(outcome(undisturbed)) == NO_LOSSES
    assert num_epochs(out) == num_epochs(undisturbed), "no epoch is run again once its state is kept"
