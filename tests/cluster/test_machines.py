"""A study on machines of which one has no data, or that join and leave: a Ray node for each machine."""

import socket
from pathlib import Path

import pytest

from tests.support.driver import NAME, Driver, misbehave, records
from tests.support.fake_trial import HANGS, MOUNT
from tests.support.nodes import Cluster

ASKED = ("--sampler", "random", "--final-seeds", 1, "--max-concurrent", 2)
READS = {"all": "reads-data"}

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")


def states(out: Path) -> list[str]:
    return [record["state"] for record in records(out)]


def hanging(cluster: Cluster, out: Path) -> set[int]:
    """Nodes on which a trial hangs in its second epoch."""
    nodes = {cluster.node_of(int(file.read_text())) for file in out.glob(f"{NAME}/trials/*/{HANGS}")}
    return {node for node in nodes if node is not None}


def test_trials_leave_a_machine_without_data_and_the_study_stops_if_no_other_is_left(tmp_path: Path) -> None:
    with Cluster(1) as cluster:
        cluster.add(1, **{MOUNT: "missing"})
        good = cluster.nodes[0]
        misbehave(tmp_path, READS)
        driver_options = (*ASKED, "--address", cluster.address)
        with Driver(tmp_path, "--trials", 5, *driver_options, env=cluster.env) as driver:
            assert driver.wait() == 0, driver.errors()
            assert (
                f"Avoiding {socket.gethostname()}: The data root /not-mounted is not a fold" in driver.said()
            )
        assert states(tmp_path) == ["COMPLETE"] * 5, "nothing was drained, and nothing failed"

        cluster.kill(good)
        with Driver(tmp_path, "--trials", 8, *driver_options, env=cluster.env) as driver:
            assert driver.wait() == 1
            (line,) = driver.errors().strip().splitlines()
        # The trial's own failure and the lack of other machines are noticed in either order. Ray may first
        # give trial 5 to the killed node, whose death it has not noticed yet. Then trial 6 fails first.
        stopped = ("Stopped: trial 5: ", "Stopped: trial 6: ", "Stopped: no machine can run the jobs: ")
        assert line.startswith(stopped)
        assert "The data root /not-mounted is not a folder." in line
        assert f"(on {socket.gethostname()}). Rerun the same command to resume." in line
        assert states(tmp_path) == ["COMPLETE"] * 5, "nothing counts"

        cluster.add(1)
        with Driver(tmp_path, "--trials", 8, *driver_options, env=cluster.env) as driver:
            assert driver.wait() == 0, driver.errors()
            assert "Resuming: 5 done" in driver.said()  # and perhaps one interrupted trial
        assert states(tmp_path) == ["COMPLETE"] * 8


def test_concurrency_follows_machines_that_join_and_leave(tmp_path: Path) -> None:
    misbehave(tmp_path, {"1": "hang", "2": "hang"})
    with (
        Cluster(1) as cluster,
        Driver(tmp_path, "--trials", 4, *ASKED, "--address", cluster.address, env=cluster.env) as driver,
    ):
        (first,) = cluster.nodes
        driver.wait_until(lambda: hanging(cluster, tmp_path) == {first})
        assert "1 concurrent trial (all that fit, below --max-concurrent 2)" in driver.said()
        joined = cluster.add(1)
        driver.wait_until(lambda: hanging(cluster, tmp_path) == {first, joined})
        cluster.kill(joined)
        misbehave(tmp_path, {})
        assert driver.wait() == 0, driver.errors()
    assert states(tmp_path) == ["COMPLETE"] * 4
