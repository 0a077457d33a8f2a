"""Resources of trials: how many are concurrent, and how many CPUs and GPUs each of them has."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prometar.config.settings import Config
from prometar.errors import UserError
from tune.config import ResourcesConfig
from tune.execution.resources import plan_runs, plan_trials

FOUR_GPUS = [{"CPU": 32.0, "GPU": 4.0}]


@dataclass(frozen=True)
class Case:
    """Case of a plan.

    Args:
        nodes: Resources of the machines.
        num_trials: Number of trials.
        options: Resources as set by the user.
        num_concurrent, cpus, gpus, summary: Expected plan.
    """

    nodes: list[dict[str, float]]
    num_trials: int
    num_concurrent: int
    cpus: float
    gpus: float
    summary: str
    options: dict[str, float] = field(default_factory=dict)


PLANS = {
    "a fifth of the trials": Case(
        FOUR_GPUS,
        num_trials=40,
        num_concurrent=8,
        cpus=4.0,
        gpus=0.5,
        summary="8 concurrent trials (a fifth of 40, so that the search learns from results), "
        "each with 4 CPUs and 0.5 GPU",
    ),
    "all that fit": Case(
        [{"CPU": 2.0}],
        num_trials=24,
        num_concurrent=2,
        cpus=1.0,
        gpus=0.0,
        summary="2 concurrent trials (all that fit), each with 1 CPU",
    ),
    "a fifth is at least one": Case(
        [{"CPU": 2.0}],
        num_trials=4,
        num_concurrent=1,
        cpus=2.0,
        gpus=0.0,
        summary="1 concurrent trial (a fifth of 4, so that the search learns from results), each with 2 CPUs",
    ),
    "one trial with all CPUs": Case(
        [{"CPU": 128.0}],
        num_trials=5,
        num_concurrent=1,
        cpus=128.0,
        gpus=0.0,
        summary="1 concurrent trial (a fifth of 5, so that the search learns from results), "
        "each with 128 CPUs",
    ),
    "equal shares of CPUs": Case(
        [{"CPU": 64.0}],
        num_trials=40,
        num_concurrent=8,
        cpus=8.0,
        gpus=0.0,
        summary="8 concurrent trials (a fifth of 40, so that the search learns from results), "
        "each with 8 CPUs",
    ),
    "a third of a GPU": Case(
        [{"CPU": 8.0, "GPU": 1.0}] * 3,
        num_trials=40,
        num_concurrent=8,
        cpus=2.0,
        gpus=0.3333,
        summary="8 concurrent trials (a fifth of 40, so that the search learns from results), "
        "each with 2 CPUs and 0.33 GPU",
    ),
    "--max-concurrent": Case(
        FOUR_GPUS,
        num_trials=40,
        options={"max_concurrent": 16},
        num_concurrent=16,
        cpus=2.0,
        gpus=0.25,
        summary="16 concurrent trials (--max-concurrent), each with 2 CPUs and 0.25 GPU",
    ),
    "--max-concurrent above what fits": Case(
        FOUR_GPUS,
        num_trials=40,
        options={"max_concurrent": 99},
        num_concurrent=16,
        cpus=2.0,
        gpus=0.25,
        summary="16 concurrent trials (all that fit, below --max-concurrent 99), "
        "each with 2 CPUs and 0.25 GPU",
    ),
    "fewer trials than --max-concurrent": Case(
        FOUR_GPUS,
        num_trials=4,
        options={"max_concurrent": 16},
        num_concurrent=4,
        cpus=8.0,
        gpus=1.0,
        summary="4 concurrent trials (all trials), each with 8 CPUs and 1 GPU",
    ),
    "--gpus-per-trial 1": Case(
        FOUR_GPUS,
        num_trials=40,
        options={"gpus_per_trial": 1.0},
        num_concurrent=4,
        cpus=8.0,
        gpus=1.0,
        summary="4 concurrent trials (all that fit), each with 8 CPUs and 1 GPU",
    ),
    "no GPUs": Case(
        FOUR_GPUS,
        num_trials=40,
        options={"gpus_per_trial": 0.0, "cpus_per_trial": 0.5},
        num_concurrent=8,
        cpus=0.5,
        gpus=0.0,
        summary="8 concurrent trials (a fifth of 40, so that the search learns from results), "
        "each with 0.5 CPU",
    ),
}


@pytest.mark.parametrize("case", PLANS.values(), ids=PLANS)
def test_a_plan_states_concurrency_shares_and_a_reason(case: Case) -> None:
    options = ResourcesConfig.model_validate(case.options)

    resources, summary = plan_trials(case.nodes, options, case.num_trials)

    assert resources.num_concurrent == case.num_concurrent
    assert resources.cpus == case.cpus
    assert resources.gpus == case.gpus
    assert summary == case.summary


@given(st.integers(1, 64), st.integers(0, 8), st.integers(1, 200), st.integers(1, 4))
def test_a_plan_fits_on_the_machines_and_uses_their_gpus(
    cpus: int, gpus: int, num_trials: int, num_machines: int
) -> None:
    nodes = [{"CPU": float(cpus), "GPU": float(gpus)}] * num_machines

    resources, _ = plan_trials(nodes, ResourcesConfig(), num_trials)

    assert 1 <= resources.num_concurrent <= max(1, num_trials // 5)
    assert resources.num_concurrent * resources.cpus <= cpus * num_machines
    assert resources.num_concurrent * resources.gpus <= gpus * num_machines
    uses_gpus = resources.gpus > 0
    assert uses_gpus == (gpus > 0)


def test_trials_that_run_together_fit_in_the_memory() -> None:
    nodes = [{"CPU": 32.0, "memory": 10e9}]
    resources, summary = plan_trials(nodes, ResourcesConfig(), 40, memory=4e9)
    assert resources.num_concurrent == 2
    assert resources.cpus == 16.0
    assert "2 concurrent trials (all that fit)" in summary


THREE_SMALL_MACHINES = [{"CPU": 8.0, "memory": 10e9}] * 3


def test_one_trial_per_machine_runs_even_if_its_estimated_memory_is_too_large() -> None:
    resources, _ = plan_trials(THREE_SMALL_MACHINES, ResourcesConfig(), 40, memory=11e9)
    assert resources.num_concurrent == 3


def test_a_number_of_concurrent_trials_that_the_user_sets_overrides_the_estimated_memory() -> None:
    resources, _ = plan_trials(THREE_SMALL_MACHINES, ResourcesConfig(max_concurrent=5), 40, memory=11e9)
    assert resources.num_concurrent == 5


REFUSED = {
    "GPU on a machine without one": (
        [{"CPU": 4.0}],
        {"gpus_per_trial": 1.0},
        r"at most 4 CPU and 0 GPU\. Lower .*--gpus-per-trial",
    ),
    "CPUs and GPU on different machines": (
        [{"CPU": 4.0}, {"CPU": 1.0, "GPU": 1.0}],
        {"cpus_per_trial": 3.0, "gpus_per_trial": 1.0},
        "A trial needs 3 CPU and 1 GPU on one machine",
    ),
    "no CPUs": ([{"GPU": 1.0}, {}], {}, "wait until more machines have joined"),
    "1.5 GPUs": (
        FOUR_GPUS,
        {"gpus_per_trial": 1.5},
        "must be at most 1, got 1.5. A trial trains on one GPU",
    ),
    "2 GPUs": (
        FOUR_GPUS,
        {"gpus_per_trial": 2.0},
        "must be at most 1, got 2. A trial trains on one GPU",
    ),
}
"""Resources of the machines, resources as set by the user, and a part of the message."""


@pytest.mark.parametrize(("nodes", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_trials_that_fit_on_no_machine_or_need_several_gpus_are_refused(
    nodes: list[dict[str, float]], options: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan_trials(nodes, ResourcesConfig.model_validate(options), 40)


def test_the_cpus_of_a_trainer_double_up_to_a_whole_machine_and_the_stream_keeps_its_own() -> None:
    nodes = [{"CPU": 2.0}, {"CPU": 4.0, "GPU": 2.0}]
    resources, _ = plan_trials(nodes, ResourcesConfig(cpus_per_trial=1.0, gpus_per_trial=0.0), 40)
    cpus_of_trainer: list[float] = []
    bundles: list[dict[str, float]] | None = resources.bundles()
    while bundles is not None:
        trainer, stream = bundles
        cpus_of_trainer.append(trainer["CPU"])
        assert stream == {"CPU": 0.5}
        bundles = resources.enlarge(bundles)
    assert cpus_of_trainer == [0.5, 1.0, 2.0, 3.5]


def test_a_share_of_a_gpu_grows_up_to_one_gpu() -> None:
    resources, _ = plan_trials([{"CPU": 4.0, "GPU": 2.0}], ResourcesConfig(), 40)
    three_quarters = [{"CPU": 1.0, "GPU": 0.75}, {"CPU": 1.0}]
    whole = [{"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0}]
    assert resources.enlarge(three_quarters) == whole
    assert resources.enlarge(whole) is None, "two GPUs are not one GPU of twice the memory"


SIXTEEN_GPUS = [{"CPU": 32.0, "GPU": 8.0}] * 2


def test_the_limit_of_the_search_does_not_throttle_the_runs_of_later_stages() -> None:
    search, _ = plan_trials(SIXTEEN_GPUS, ResourcesConfig(), 40)
    final, summary = plan_runs(SIXTEEN_GPUS, ResourcesConfig(), 30)

    assert search.num_concurrent == 8
    assert final.num_concurrent == 30
    assert final.gpus == 0.5
    assert summary == "30 concurrent runs (all remaining runs), each with 2 CPUs and 0.5 GPU"


def test_few_runs_get_all_resources_even_if_more_may_be_concurrent() -> None:
    resources, summary = plan_runs(SIXTEEN_GPUS, ResourcesConfig(max_concurrent=32), 4)
    assert resources.num_concurrent == 4
    assert "4 concurrent runs (all remaining runs)" in summary
    assert resources.cpus == 16.0
    assert resources.gpus == 1.0


def test_a_limit_of_the_user_applies_to_every_stage() -> None:
    resources, summary = plan_runs(SIXTEEN_GPUS, ResourcesConfig(max_concurrent=2), 30)
    assert resources.num_concurrent == 2
    assert "2 concurrent runs (--max-concurrent)" in summary


def test_a_plan_states_how_many_jobs_may_run_if_machines_join() -> None:
    machine = {"CPU": 8.0, "GPU": 1.0}
    resources, _ = plan_trials([machine], ResourcesConfig(), 40)
    assert resources.num_concurrent == 4
    assert resources.max_concurrent == 8
    assert resources.capacity(machine) == 4


def documented(page: str, pattern: str) -> tuple[str, ...]:
    """Return the groups of a pattern that docs/PAGE contains. Line breaks of the page count as spaces."""
    text = (Path(__file__).parents[3] / "docs" / page).read_text("utf-8")
    match = re.search(pattern, " ".join(text.split()))
    assert match, f"docs/{page} does not contain {pattern}"
    return match.groups()


PERFORMANCE = r"`(\w+)` remains the default, and up to (\w+) trials share a GPU"
"""Sentence in docs/performance.md with the default precision and the number of trials per GPU."""


def test_the_default_precision_is_the_documented_one() -> None:
    default = Config().backbone.precision
    in_performance, _ = documented("performance.md", PERFORMANCE)
    (in_settings,) = documented("settings.md", r"`backbone\.precision` \| `(\w+)`")
    assert in_performance == default
    assert in_settings == default


def test_as_many_jobs_share_a_gpu_as_documented() -> None:
    planned, _ = plan_runs([{"CPU": 64.0, "GPU": 1.0}], ResourcesConfig(), 100)
    number_words = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 8: "eight"}
    jobs_per_gpu = number_words[planned.num_concurrent]

    _, trials_per_gpu = documented("performance.md", PERFORMANCE)
    (runs_per_gpu,) = documented("protocols.md", r"By default, up to (\w+) runs share a GPU")
    assert trials_per_gpu == jobs_per_gpu
    assert runs_per_gpu == jobs_per_gpu
    assert planned.gpus == 1 / planned.num_concurrent
