"""Resources of trials: a fifth of the budget at once, and shares that grow accordingly."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prometar.config.settings import Config
from prometar.errors import UserError
from tune.config import ResourcesConfig
from tune.execution.resources import plan_runs, plan_trials

FOUR_GPUS = [{"CPU": 32.0, "GPU": 4.0}]
FIFTH = "a fifth of 40, so that the search learns from results"


@pytest.mark.parametrize(
    ("nodes", "asked", "trials", "expected", "reason"),
    [
        (FOUR_GPUS, {}, 40, (8, 4.0, 0.5), f"8 concurrent trials ({FIFTH}), each with 4 CPUs and 0.5 GPU"),
        ([{"CPU": 2.0}], {}, 24, (2, 1.0, 0.0), "2 concurrent trials (all that fit), each with 1 CPU"),
        (
            [{"CPU": 2.0}],
            {},
            4,
            (1, 2.0, 0.0),
            "1 concurrent trial (a fifth of 4, so that the search learns from results), each with 2 CPUs",
        ),
        (
            [{"CPU": 128.0}],
            {},
            5,
            (1, 128.0, 0.0),
            "1 concurrent trial (a fifth of 5, so that the search learns from results), each with 128 CPUs",
        ),
        ([{"CPU": 64.0}], {}, 40, (8, 8.0, 0.0), f"8 concurrent trials ({FIFTH}), each with 8 CPUs"),
        (
            [{"CPU": 8.0, "GPU": 1.0}] * 3,
            {},
            40,
            (8, 2.0, 0.3333),
            f"8 concurrent trials ({FIFTH}), each with 2 CPUs and 0.33 GPU",
        ),
        (
            FOUR_GPUS,
            {"max_concurrent": 16},
            40,
            (16, 2.0, 0.25),
            "16 concurrent trials (--max-concurrent), each with 2 CPUs and 0.25 GPU",
        ),
        (
            FOUR_GPUS,
            {"max_concurrent": 99},
            40,
            (16, 2.0, 0.25),
            "16 concurrent trials (all that fit, below --max-concurrent 99), each with 2 CPUs and 0.25 GPU",
        ),
        (
            FOUR_GPUS,
            {"gpus_per_trial": 1.0},
            40,
            (4, 8.0, 1.0),
            "4 concurrent trials (all that fit), each with 8 CPUs and 1 GPU",
        ),
        (
            FOUR_GPUS,
            {"gpus_per_trial": 0.0, "cpus_per_trial": 0.5},
            40,
            (8, 0.5, 0.0),
            f"8 concurrent trials ({FIFTH}), each with 0.5 CPU",
        ),
    ],
)
def test_a_plan_has_concurrency_shares_and_a_reason(
    nodes: list[dict[str, float]],
    asked: dict[str, float],
    trials: int,
    expected: tuple[int, float, float],
    reason: str,
) -> None:
    resources, shown = plan_trials(nodes, ResourcesConfig.model_validate(asked), trials)
    assert (resources.num_concurrent, resources.cpus, resources.gpus) == expected
    assert shown == reason


@given(st.integers(1, 64), st.integers(0, 8), st.integers(1, 200), st.integers(1, 4))
def test_a_plan_fits_on_the_machines(cpus: int, gpus: int, trials: int, machines: int) -> None:
    resources, _ = plan_trials(
        [{"CPU": float(cpus), "GPU": float(gpus)}] * machines, ResourcesConfig(), trials
    )
    assert 1 <= resources.num_concurrent <= max(1, trials // 5)
    assert resources.num_concurrent * resources.cpus <= cpus * machines
    assert resources.num_concurrent * resources.gpus <= gpus * machines
    assert (resources.gpus > 0) == (gpus > 0)


def test_memory_bounds_the_plan() -> None:
    nodes = [{"CPU": 32.0, "memory": 10e9}]
    resources, shown = plan_trials(nodes, ResourcesConfig(), 40, memory=4e9)
    assert resources.num_concurrent == 2
    assert resources.cpus == 16.0
    assert "2 concurrent trials (all that fit)" in shown
    small = [{"CPU": 8.0, "memory": 10e9}] * 3
    assert plan_trials(small, ResourcesConfig(), 40, memory=11e9)[0].num_concurrent == 3, "one per machine"
    asked = ResourcesConfig(max_concurrent=5)
    assert plan_trials(small, asked, 40, memory=11e9)[0].num_concurrent == 5, "a given number counts"


@pytest.mark.parametrize(
    ("nodes", "asked", "message"),
    [
        ([{"CPU": 4.0}], {"gpus_per_trial": 1.0}, r"at most 4 CPU and 0 GPU\. Lower .*--gpus-per-trial"),
        (
            [{"CPU": 4.0}, {"CPU": 1.0, "GPU": 1.0}],
            {"cpus_per_trial": 3.0, "gpus_per_trial": 1.0},
            "A trial needs 3 CPU and 1 GPU on one machine",
        ),
        ([{"GPU": 1.0}, {}], {}, "wait until more machines have joined"),
        (FOUR_GPUS, {"gpus_per_trial": 1.5}, "must be at most 1, got 1.5. A trial trains on one GPU"),
        (FOUR_GPUS, {"gpus_per_trial": 2.0}, "must be at most 1, got 2. A trial trains on one GPU"),
    ],
)
def test_too_much_is_refused(nodes: list[dict[str, float]], asked: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_trials(nodes, ResourcesConfig.model_validate(asked), 40)


def test_a_larger_share_ends_at_a_whole_machine() -> None:
    nodes = [{"CPU": 2.0}, {"CPU": 4.0, "GPU": 2.0}]
    resources, _ = plan_trials(nodes, ResourcesConfig(cpus_per_trial=1.0, gpus_per_trial=0.0), 40)
    shares = [resources.bundles()]
    while (more := resources.enlarge(shares[-1])) is not None:
        shares.append(more)
    assert [bundles[0]["CPU"] for bundles in shares] == [0.5, 1.0, 2.0, 3.5]
    assert all(bundles[1] == {"CPU": 0.5} for bundles in shares), "the stream keeps its CPUs"
    assert resources.enlarge([{"CPU": 1.0, "GPU": 0.75}, {"CPU": 1.0}]) == [
        {"CPU": 1.0, "GPU": 1.0},
        {"CPU": 1.0},
    ]
    whole = [{"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0}]
    assert resources.enlarge(whole) is None, "two GPUs are not one of twice the memory"


SIXTEEN_GPUS = [{"CPU": 32.0, "GPU": 8.0}] * 2


def test_the_limit_of_the_search_does_not_throttle_the_runs_of_later_stages() -> None:
    search, _ = plan_trials(SIXTEEN_GPUS, ResourcesConfig(), 40)
    final, shown = plan_runs(SIXTEEN_GPUS, ResourcesConfig(), 30)
    assert search.num_concurrent == 8
    assert (final.num_concurrent, final.gpus) == (30, 0.5)
    assert shown == "30 concurrent runs (all remaining runs), each with 2 CPUs and 0.5 GPU"


def test_few_runs_get_all_resources_even_if_more_may_be_concurrent() -> None:
    resources, _ = plan_runs(SIXTEEN_GPUS, ResourcesConfig(max_concurrent=32), 4)
    assert (resources.num_concurrent, resources.cpus, resources.gpus) == (4, 16.0, 1.0)


def test_a_limit_of_the_user_applies_to_every_stage() -> None:
    resources, shown = plan_runs(SIXTEEN_GPUS, ResourcesConfig(max_concurrent=2), 30)
    assert resources.num_concurrent == 2
    assert "2 concurrent runs (--max-concurrent)" in shown


def test_a_plan_states_how_many_jobs_may_run_if_machines_join() -> None:
    resources, _ = plan_trials([{"CPU": 8.0, "GPU": 1.0}], ResourcesConfig(), 40)
    assert (resources.num_concurrent, resources.max_concurrent) == (4, 8)
    assert resources.capacity({"CPU": 8.0, "GPU": 1.0}) == 4


def documented(page: str, pattern: str) -> tuple[str, ...]:
    """Return the groups of a pattern in a guide whose line breaks are read as spaces."""
    text = (Path(__file__).parents[3] / "docs" / page).read_text("utf-8")
    found = re.search(pattern, " ".join(text.split()))
    assert found, f"docs/{page} does not contain {pattern}"
    return found.groups()


def test_the_default_precision_and_share_of_a_gpu_are_those_documented() -> None:
    pattern = r"`(\w+)` remains the default, and up to (\w+) trials share a GPU"
    precision, trials_per_gpu = documented("performance.md", pattern)
    (of_settings,) = documented("settings.md", r"`backbone\.precision` \| `(\w+)`")
    (runs_per_gpu,) = documented("protocols.md", r"By default, up to (\w+) runs share a GPU")
    default = Config().backbone.precision
    planned, _ = plan_runs([{"CPU": 64.0, "GPU": 1.0}], ResourcesConfig(), 100)
    assert (precision, of_settings) == (default, default)
    by_count = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 8: "eight"}
    number = by_count[planned.num_concurrent]
    assert (trials_per_gpu, runs_per_gpu) == (number, number)
    assert planned.gpus == 1 / planned.num_concurrent
