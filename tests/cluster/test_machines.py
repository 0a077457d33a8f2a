"""Studies on machines without data, and on machines that join and leave. Each machine is a Ray node here."""

import socket
from pathlib import Path

import pytest

from tests.support.driver import NAME, Driver, misbehave, records
from tests.support.fake_trial import HANGS, MOUNT
from tests.support.nodes import Cluster

OPTIONS = ("--sampler", "random", "--final-seeds", 1, "--max-concurrent", 2)

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")


def states(out: Path) -> list[str]:
    """Return the states of all trials of OUT/fake that have ended, ordered by number."""
    return [record["state"] for record in records(out)]


def start(out: Path, cluster: Cluster, *, trials: int) -> Driver:
    """Start or resume a study in OUT/fake on a cluster."""
    return Driver(out, "--trials", trials, *OPTIONS, "--address", cluster.address, env=cluster.env)


def nodes_with_hanging_trials(cluster: Cluster, out: Path) -> set[int]:
    """Return the nodes on which a trial hangs in its second epoch."""
    nodes = set()
    for mark in out.glob(f"{NAME}/trials/*/{HANGS}"):
        node = cluster.node_of(int(mark.read_text()))
        if node is not None:
            nodes.add(node)
    return nodes


def test_trials_leave_a_machine_without_data_and_the_study_stops_if_no_other_is_left(tmp_path: Path) -> None:
    host = socket.gethostname()
    misbehave(tmp_path, {"all": "reads-data"})
    with Cluster(1) as cluster:
        (node_with_data,) = cluster.nodes
        cluster.add(1, **{MOUNT: "missing"})

        # One of two machines has data. All trials end there, and none fails.
        with start(tmp_path, cluster, trials=5) as driver:
            assert driver.wait() == 0, driver.errors()
            assert f"Avoiding {host}: The data root /not-mounted is not a fold" in driver.said()
        assert states(tmp_path) == ["COMPLETE"] * 5

        # Only the machine without data is left. The study stops, and no trial counts as failed.
        cluster.kill(node_with_data)
        with start(tmp_path, cluster, trials=8) as driver:
            assert driver.wait() == 1
            errors = driver.errors()
            assert errors.count("\n") == 1, errors
        # Either the trial's own failure or the lack of other machines is noticed first. Ray may give trial 5
        # to the killed node before it notices that the node is dead. Then trial 6 fails first.
        reasons = ("Stopped: trial 5: ", "Stopped: trial 6: ", "Stopped: no machine can run the jobs: ")
        assert errors.startswith(reasons)
        assert "The data root /not-mounted is not a folder." in errors
        assert f"(on {host}). Rerun the same command to resume." in errors
        assert states(tmp_path) == ["COMPLETE"] * 5

        # A machine with data joins, and the study resumes.
        cluster.add(1)
        with start(tmp_path, cluster, trials=8) as driver:
            assert driver.wait() == 0, driver.errors()
            assert "Resuming: 5 done" in driver.said()  # and perhaps one interrupted trial
        assert states(tmp_path) == ["COMPLETE"] * 8


def test_concurrency_follows_machines_that_join_and_leave(tmp_path: Path) -> None:
    misbehave(tmp_path, {"1": "hang", "2": "hang"})
    with Cluster(1) as cluster, start(tmp_path, cluster, trials=4) as driver:
        (first,) = cluster.nodes
        driver.wait_until(lambda: nodes_with_hanging_trials(cluster, tmp_path) == {first})
        assert "1 concurrent trial (all that fit, below --max-concurrent 2)" in driver.said()

        joined = cluster.add(1)
        driver.wait_until(lambda: nodes_with_hanging_trials(cluster, tmp_path) == {first, joined})

        cluster.kill(joined)
        misbehave(tmp_path, {})
        assert driver.wait() == 0, driver.errors()
    assert states(tmp_path) == ["COMPLETE"] * 4
