"""The resource plan: what fits, and what is refused with figures."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prometar.distributed.placement import Room, Shares, plan_resources
from prometar.errors import UserError


@given(cpus=st.integers(1, 64), each=st.sampled_from([0.5, 1.0, 2.0, 3.0]), most=st.integers(1, 80))
def test_a_plan_fits_and_leaves_the_stream_a_place(cpus: int, each: float, most: int) -> None:
    cluster = [{"CPU": float(cpus)}]
    if each > cpus:
        with pytest.raises(UserError, match=f"A trial needs {each:g} CPU on one .* have at most {cpus} CPU"):
            plan_resources(cluster, Shares(cpus=each))
        return
    plan = plan_resources(cluster, Shares(cpus=each, max_concurrent=most))
    assert plan.max_concurrent <= most
    assert plan.max_concurrent * each <= cpus
    bundles = plan.bundles()
    assert sum(b["CPU"] for b in bundles) == each
    assert bundles[1]["CPU"] == plan.stream_cpus > 0


def test_gpus() -> None:
    cluster = [{"CPU": 16.0, "GPU": 2.0}]
    assert plan_resources(cluster).gpus_per_trial == 1.0
    assert plan_resources(cluster).max_concurrent == 2
    assert plan_resources(cluster, Shares(gpus=0.25)).max_concurrent == 8
    assert plan_resources(cluster, Shares(gpus=0.25)).bundles()[0]["GPU"] == 0.25
    with pytest.raises(UserError, match=r"at most 4 CPU and 0 GPU\. Lower .*--gpus-per-trial"):
        plan_resources([{"CPU": 4.0}], Shares(gpus=1.0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"cpus": 0},
        {"cpus": -1},
        {"cpus": 0.001},
        {"max_concurrent": 0},
        {"gpus": math.nan},
        {"gpus": -1},
        {"gpus": 1.5},
    ],
)
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="must be"):
        Shares(**wrong)  # type: ignore[arg-type]


def test_a_run_lies_on_one_machine() -> None:
    nodes = [{"CPU": 3.0, "GPU": 1.0}, {"CPU": 3.0}, {}]
    assert plan_resources(nodes, Shares(cpus=2.0, gpus=0)).max_concurrent == 2
    assert plan_resources(nodes, Shares(gpus=0.4)).max_concurrent == 2, "shares lie on one GPU"
    with pytest.raises(UserError, match=r"at most 3 CPU\. Lower --cpus-per-run"):
        plan_resources(nodes, Shares(cpus=4.0, gpus=0, noun="run"))
    with pytest.raises(UserError, match="A trial needs 3 CPU and 1 GPU on one machine"):
        plan_resources([{"CPU": 4.0}, {"CPU": 1.0, "GPU": 1.0}], Shares(cpus=3.0))
    with pytest.raises(UserError, match="wait until workers have joined"):
        plan_resources([{"GPU": 1.0}, {}])


def test_memory_limits_how_many_run_at_once() -> None:
    nodes = [{"CPU": 8.0, "memory": 10e9}, {"CPU": 1.0, "memory": 100e9}, {"CPU": 2.0}]
    assert plan_resources(nodes).max_concurrent == 11, "a run's memory is not known"
    plan = plan_resources(nodes, memory=4e9)
    assert plan.max_concurrent == 2 + 1 + 2, "a machine that does not tell its memory has enough"
    assert "about 3.7 GiB of memory" in plan.describe(nodes)
    assert plan_resources(nodes, Shares(max_concurrent=3), memory=4e9).max_concurrent == 3
    assert "limited by memory" in plan.describe(nodes)
    assert "limited by" not in plan_resources(nodes, memory=1e9).describe(nodes)


def test_where_not_even_one_fits_each_machine_gets_one() -> None:
    nodes = [{"CPU": 8.0, "memory": 10e9}] * 3
    large = plan_resources(nodes, memory=11e9)
    assert large.max_concurrent == 3
    assert "their machines have memory for 0: more may be killed" in large.describe(nodes)
    asked = plan_resources(nodes, Shares(max_concurrent=5), memory=11e9)
    assert asked.max_concurrent == 5, "who says a number means it"


def test_a_larger_share_ends_at_a_whole_machine() -> None:
    room = Room.of([{"CPU": 2.0}, {"CPU": 4.0, "GPU": 2.0}])
    shares = [plan_resources([{"CPU": 4.0}]).bundles()]
    while (more := room.larger(shares[-1])) is not None:
        shares.append(more)
    assert [bundles[0]["CPU"] for bundles in shares] == [0.5, 1.0, 2.0, 3.5]
    assert all(bundles[1] == {"CPU": 0.5} for bundles in shares)
    assert room.larger([{"CPU": 1.0, "GPU": 0.75}]) == [{"CPU": 1.0, "GPU": 1.0}]
    assert room.larger([{"CPU": 1.0, "GPU": 1.0}]) is None, "two GPUs are not one of twice the memory"
