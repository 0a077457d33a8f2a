"""A study on a cluster of several machines that die: on one machine, with a Ray node for each."""

from pathlib import Path

import pytest

from tests.support.driver import NAME, Driver, misbehave, options_of, run_fake
from tests.support.fake_trial import HANGS
from tests.support.nodes import Cluster
from tests.support.witness import NO_LOSSES, Witness, num_epochs, outcome

# Settings that do not hang on the order in which trials end.
ASKED = ("--trials", 4, "--sampler", "random", "--final-seeds", 1, "--max-concurrent", 2)
RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")


def hanging(cluster: Cluster, out: Path) -> dict[int, int]:
    """Trials that hang in their second epoch, by the node on which the worker lives."""
    workers = {file: cluster.node_of(int(file.read_text())) for file in out.glob(f"{NAME}/trials/*/{HANGS}")}
    return {node: int(file.parent.name) for file, node in workers.items() if node is not None}


def test_a_node_dies_another_joins_and_a_study_outlives_the_head(tmp_path: Path) -> None:
    """One cluster and one driver for all of it: starting them is what takes the time."""
    out = tmp_path / "out"
    undisturbed = tmp_path / "undisturbed"
    run_fake(undisturbed, **options_of(*ASKED))
    misbehave(out, {"1": "hang", "2": "hang"})
    witness = Witness(out)
    with (
        Cluster(1, head=1) as cluster,
        Driver(out, *ASKED, "--address", cluster.address, env=cluster.env | {RECONNECT: "5"}) as driver,
    ):
        head, other = cluster.nodes
        driver.wait_until(lambda: hanging(cluster, out).keys() == {head, other})
        assert "2 concurrent trials (--max-concurrent), each with 1 CPU" in driver.said()
        before = hanging(cluster, out)
        cluster.kill(other)
        joined = cluster.add(1)
        driver.wait_until(lambda: joined in hanging(cluster, out))  # nowhere else is room
        assert hanging(cluster, out)[joined] == before[other]
        assert witness.look() == 1
        cluster.kill_head()
        assert driver.wait() == 1
        (line,) = driver.errors().strip().splitlines()
        assert "Failed to connect to GCS within 5 seconds" in line
        assert witness.look() == 1
    _, said = run_fake(out, behaviour={}, **options_of(*ASKED))
    assert "Resuming: 1 done, 2 interrupted" in said
    assert witness.losses(outcome(undisturbed)) == NO_LOSSES
    assert num_epochs(out) == num_epochs(undisturbed), "no epoch is run again once its state is kept"
