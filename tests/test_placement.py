"""The resource plan: what fits, and what is refused with figures."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prometar.errors import UserError
from prometar.placement import plan_resources


@given(cpus=st.integers(1, 64), each=st.sampled_from([0.5, 1.0, 2.0, 3.0]), most=st.integers(1, 80))
def test_a_plan_fits_and_leaves_the_stream_a_place(cpus: int, each: float, most: int) -> None:
    cluster = {"CPU": float(cpus)}
    if each > cpus:
        with pytest.raises(
            UserError, match=f"a trial asks for {each:g} CPU, Ray has {cpus}: lower --cpus-per-trial"
        ):
            plan_resources(cluster, cpus_per_trial=each)
        return
    plan = plan_resources(cluster, cpus_per_trial=each, max_concurrent=most)
    assert plan.max_concurrent <= most
    assert plan.max_concurrent * each <= cpus
    bundles = plan.bundles()
    assert sum(b["CPU"] for b in bundles) == each
    assert bundles[1]["CPU"] == plan.stream_cpus > 0


def test_gpus() -> None:
    cluster = {"CPU": 16.0, "GPU": 2.0}
    assert plan_resources(cluster).gpus_per_trial == 1.0
    assert plan_resources(cluster).max_concurrent == 2
    assert plan_resources(cluster, gpus_per_trial=0.25).max_concurrent == 8
    assert plan_resources(cluster, gpus_per_trial=0.25).bundles()[0]["GPU"] == 0.25
    with pytest.raises(UserError, match="asks for 1 GPU, Ray has 0: lower --gpus-per-trial"):
        plan_resources({"CPU": 4.0}, gpus_per_trial=1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"cpus_per_trial": 0},
        {"cpus_per_trial": -1},
        {"cpus_per_trial": 0.001},
        {"max_concurrent": 0},
        {"gpus_per_trial": math.nan},
        {"gpus_per_trial": -1},
    ],
)
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="must be"):
        plan_resources({"CPU": 4.0}, **wrong)  # type: ignore[arg-type]


def test_the_message_names_the_commands_own_option() -> None:
    with pytest.raises(UserError, match="a run asks for 8 CPU, Ray has 4: lower --cpus-per-run"):
        plan_resources({"CPU": 4.0}, cpus_per_trial=8, noun="run")
