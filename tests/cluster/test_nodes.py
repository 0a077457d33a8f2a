"""A study on a cluster of several machines that die: on one machine, with a Ray node for each."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.driver import NAME, Driver, misbehave, options_of, run_fake
from tests.support.fake_trial import HANGS
from tests.support.nodes import Cluster
from tests.support.witness import NO_LOSSES, Witness, num_epochs, outcome

# Settings that do not hang on the order in which trials end.
ASKED = ("--trials", 9, "--sampler", "random", "--top", 1, "--final-seeds", 1, 2, "--max-concurrent", 2)
EPOCHS = 3 * (9 + 4 + 4)
RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="needs Linux's /proc, to end nodes"
)


@pytest.fixture(scope="module")
def expected(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the study finds on one machine, when nobody disturbs it."""
    out = tmp_path_factory.mktemp("undisturbed")
    run_fake(out, **options_of(*ASKED))
    assert num_epochs(out) == EPOCHS
    return outcome(out)


def hanging(cluster: Cluster, out: Path) -> dict[int, tuple[int, int]]:
    """Trials that hang in their second epoch: number and worker, by the node on which the worker lives."""
    found = {}
    for file in (out / NAME / "trials").glob(f"*/{HANGS}"):
        worker = int(file.read_text())
        node = cluster.node_of(worker)
        if node is not None:
            found[node] = int(file.parent.name), worker
    return found


def test_a_node_dies_another_joins_and_a_study_outlives_the_head(
    tmp_path: Path, expected: dict[str, Any]
) -> None:
    """One cluster and one driver for all of it: starting them is what takes the time."""
    misbehave(tmp_path, {"3": "hang", "4": "hang"})
    witness = Witness(tmp_path)
    with (
        Cluster(1, 1) as cluster,
        Driver(tmp_path, *ASKED, "--address", cluster.address, env=cluster.env | {RECONNECT: "5"}) as driver,
    ):
        first, other = cluster.nodes
        driver.wait_until(lambda: hanging(cluster, tmp_path).keys() == {first, other})
        assert "2 concurrent trials (--max-concurrent), each with 1 CPU" in driver.said()
        before = hanging(cluster, tmp_path)
        cluster.kill(first)
        joined = cluster.add(1)
        driver.wait_until(lambda: joined in hanging(cluster, tmp_path))  # nowhere else is room
        assert hanging(cluster, tmp_path)[joined][0] == before[first][0]
        assert witness.look() == 3
        _, worker = before[other]
        os.kill(worker, signal.SIGKILL)

        misbehave(tmp_path, {"7": "hang", "8": "hang"})
        last = [tmp_path / NAME / "trials" / name / HANGS for name in ("0007", "0008")]
        driver.wait_until(lambda: all(file.exists() for file in last))
        cluster.kill_head()
        assert driver.wait() == 1
        (line,) = driver.errors().strip().splitlines()
        assert "Failed to connect to GCS within 5 seconds" in line
        assert witness.look() == 7
    _, said = run_fake(tmp_path, behaviour={}, **options_of(*ASKED))
    assert "Resuming: 7 trials finished, 2 interrupted" in said
    assert witness.losses(expected) == NO_LOSSES
    assert num_epochs(tmp_path) == EPOCHS, "no epoch is run again once its state is kept"
