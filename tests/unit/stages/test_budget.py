"""What a study trains at most is what its jobs are."""

from dataclasses import replace
from pathlib import Path

import pytest
from tune.jobs.spec import Job, Terms
from tune.stages.budget import Budget, Part, headline, planned
from tune.stages.sequential import LOOKS
from tune.study_spec import StudySpec

from prometar.config.settings import Config
from prometar.errors import UserError
from prometar.training.run import build_run
from tests.support.driver import small_spec
from tune.space.spaces import Space


def steps_of(job: Job) -> int:
    """Of an epoch of all its runs, as they are trained."""
    return sum(
        build_run(Config.model_validate(leg.config), job.objective).plan.steps_per_epoch for leg in job.legs
    )


@pytest.fixture
def spec(small_dtd: Path) -> StudySpec:
    config = Config().override(
        {"train.epochs": 2, "data.root": str(small_dtd), "data.name": "dtd", "data.shots": 5, "train.seed": 1}
    )
    return small_spec(
        config=config, objective="base_val", trials=4, seeds_per_trial=2, top=2, top_seeds=3,
        final_seeds=(7, 8), datasets=("dtd", "cells"),
    )  # fmt: skip


def test_it_counts_what_is_trained(spec: StudySpec) -> None:
    found, settings = planned(spec), spec.reference()
    trial = spec.search_job(settings, spec.seeds, "", Terms())
    again = spec.search_job(settings, spec.fresh_seeds, "", Terms())
    finals = [
        spec.final_job(settings, name, seed, "", Terms()) for name in spec.names for seed in spec.final_seeds
    ]
    assert (found.search.runs, found.search.epochs) == (4 * len(trial.legs), 4 * 2 * len(trial.legs))
    assert found.steps_per_epoch == steps_of(trial)
    assert found.search.steps == 4 * 2 * steps_of(trial)
    assert (found.last_round.runs, found.last_round.steps) == (
        3 * len(again.legs), 3 * 2 * steps_of(again)
    )  # fmt: skip
    assert (found.final_test.runs, found.final_test.steps) == (
        2 * len(finals), 2 * 2 * sum(steps_of(job) for job in finals)
    )  # fmt: skip
    assert found.total.runs == 16 + 18 + 8
    assert "4 where the released settings are kept" in str(found)


def test_a_test_that_ends_when_it_is_decided() -> None:
    auto = small_spec(final_seeds=tuple(range(1, 16)), matters=1.0)
    found = planned(auto)
    assert found.final_test.runs == 2 * LOOKS[-1].pairs
    assert "10 where that decides it, 3 where the released settings are kept" in str(found)


def test_trials_of_different_lengths() -> None:
    lengths = {"train.epochs": {"type": "int", "low": 1, "high": 6}}
    spec = small_spec(epochs=2, trials=4, space=Space.of(lengths), final_seeds=(5,))
    assert spec.search_job({"train.epochs": 6}, spec.seeds, "", Terms()).epochs == 6
    assert spec.final_job({"train.epochs": 1}, spec.names[0], 5, "", Terms()).epochs == 1
    assert spec.reference() == {"train.epochs": 2}
    assert planned(spec).search.epochs == 4 * 6
    assert "trials of up to 6 epochs" in headline(spec)
    with pytest.raises(UserError, match=r"searches train\.epochs: use --pruner none"):
        replace(spec, pruner="hopeless")


def test_trials_of_different_batches() -> None:
    sizes = {"train.batch_size": {"type": "choice", "choices": [2, 8]}}
    spec = small_spec(epochs=1, trials=4, space=Space.of(sizes), final_seeds=(5,))
    spec = replace(spec, config=spec.config.override({"train.batch_size": 8}))
    small, released = (
        steps_of(spec.search_job({"train.batch_size": size}, spec.seeds, "", Terms())) for size in (2, 8)
    )
    final = spec.final_job({"train.batch_size": 2}, spec.names[0], 5, "", Terms())
    found = planned(spec)
    assert found.search.steps == 4 * small
    assert found.final_test.steps == 2 * steps_of(final)
    assert found.steps_per_epoch == released < small


def test_fewer_trials_than_the_last_round_takes() -> None:
    assert planned(small_spec(trials=2, top=3, top_seeds=2, final_seeds=(5,))).last_round.runs == 4
    assert planned(small_spec(trials=1, top=3, final_seeds=(5,))).last_round.runs == 0, "none to compare"


def test_what_runs_beside_each_other_is_waited_for_once() -> None:
    """Eight runs on three places take three turns, however many places a later stage could fill."""
    budget = Budget(Part("search", 24, 120, 2400), Part("last", 8, 40, 800), Part("test", 2, 10, 200), 20)
    assert budget.waited(1, done=0.0) == 3400
    assert budget.waited(3, done=0.5) == 8 * 100 / 2 + 3 * 100 + 100
    assert budget.waited(64, done=1.0) == 200
