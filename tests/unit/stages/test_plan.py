"""The plan counts what the stages train at most."""

from pathlib import Path
from typing import Any

import pytest

from prometar.config.settings import parse
from prometar.errors import UserError
from prometar.training.run import build_run
from tests.support.driver import small_config
from tune import Space, StudyConfig
from tune.execution.jobs import Job
from tune.records.folder import StudyFolder
from tune.stages.jobs import final_job, trial_job
from tune.stages.plan import StudyPlan, plan_study


def config_of(tmp_path: Path, *, ranges: dict[str, Any] | None = None, **options: Any) -> StudyConfig:
    if ranges:
        options["space"] = Space.model_validate({"name": "mine", "ranges": ranges})
    return small_config(tmp_path, **options)


def steps_of(job: Job) -> int:
    """Steps of an epoch of all runs of a job, as they are trained."""
    runs = [build_run(parse(run.config, where=""), job.objective) for run in job.runs]
    return sum(run.plan.steps_per_epoch for run in runs)


def jobs_of(config: StudyConfig, **settings: Any) -> tuple[Job, Job]:
    """A trial, and a run of the final test on the first dataset."""
    folder, settings = StudyFolder.of(config), {**config.baseline, **settings}
    trial = trial_job(config, folder, 1, settings)
    return trial, final_job(config, folder, 1, settings, config.search.datasets[0], 5)


def counts(plan: StudyPlan) -> list[tuple[int, int, int]]:
    return [(stage.runs, stage.epochs, stage.steps) for stage in plan.stages]


def test_counts_are_those_of_the_jobs(small_dtd: Path, tmp_path: Path) -> None:
    config = config_of(
        tmp_path, dataset=["dtd", "cells"], data_root=small_dtd, backbone="mini", objective="base_val",
        epochs=2, final_epochs=3, trials=4, seeds_per_trial=2, top=2, final_seeds=(7, 8),
        settings={"confirm.seeds": 3, "data.shots": 5},
    )  # fmt: skip
    plan, (trial, _) = plan_study(config), jobs_of(config)
    finals = [
        final_job(config, StudyFolder.of(config), 0, config.baseline, name, 7)
        for name in config.search.datasets
    ]
    per_epoch = sum(map(steps_of, finals))
    assert counts(plan) == [
        (4 * 4, 4 * 4 * 2, 4 * 2 * steps_of(trial)),
        (3 * 3 * 2, 3 * 3 * 2 * 2, 3 * 3 * 2 * steps_of(trial) // 2),
        (2 * 2 * 2, 2 * 2 * 2 * 3, 2 * 2 * 3 * per_epoch),
    ]
    assert plan.total.runs == 16 + 18 + 8
    assert "At most: 42 runs, " in str(plan)


def test_a_test_that_may_end_early(tmp_path: Path) -> None:
    plan = plan_study(config_of(tmp_path, final_seeds="auto"))
    assert plan.stages[2].runs == 30
    assert "(10 if that is decisive, 3 if the default settings are selected)" in str(plan)


def test_trials_of_different_lengths(tmp_path: Path) -> None:
    lengths = {"train.epochs": {"type": "int", "low": 1, "high": 6}}
    config = config_of(tmp_path, ranges=lengths, epochs=2, trials=4, final_seeds=(5,))
    trial, final = jobs_of(config, **{"train.epochs": 6})
    assert (trial.epochs, final.epochs, config.baseline) == (6, 6, {"train.epochs": 2})
    assert [stage.epochs for stage in plan_study(config).stages] == [4 * 6, 0, 2 * 6]
    with pytest.raises(UserError, match=r"searches train\.epochs. Use --pruner none"):
        plan_study(config_of(tmp_path, ranges=lengths, pruner="percentile"))


def test_trials_of_different_batches(tmp_path: Path) -> None:
    sizes = {"train.batch_size": {"type": "choice", "choices": [2, 8]}}
    config = config_of(
        tmp_path, ranges=sizes, trials=4, epochs=1, final_epochs=1, settings={"train.batch_size": 8}
    )
    trial, final = jobs_of(config, **{"train.batch_size": 2})
    assert [stage.steps for stage in plan_study(config).stages] == [
        4 * steps_of(trial),
        0,
        2 * steps_of(final),
    ]


@pytest.mark.parametrize(("trials", "top", "runs"), [(2, 3, 4), (1, 3, 0), (5, 0, 0), (5, 3, 8)])
def test_no_more_candidates_than_trials(trials: int, top: int, runs: int, tmp_path: Path) -> None:
    assert plan_study(config_of(tmp_path, trials=trials, top=top)).stages[1].runs == runs


def test_runs_of_a_stage_that_fit_beside_each_other_are_waited_for_once(tmp_path: Path) -> None:
    plan = plan_study(config_of(tmp_path, trials=5, epochs=2, final_epochs=2))
    search, _, final = (stage.steps / max(stage.runs, 1) for stage in plan.stages)
    assert plan.waves(1) == 5 * search + 2 * final
    assert plan.waves(3) == 2 * search + final
    assert plan.waves(64) == search + final


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "zero-shot"}, "--method zero-shot trains nothing"),
        ({"ranges": {"train.shuffle": {"type": "int", "low": 1, "high": 2}}}, "not a setting of a run"),
        ({"ranges": {"augment.flip": {"type": "float", "low": 0.0, "high": 5.0}}}, "less than or equal to 1"),
        ({"ranges": {"train.epochs": {"type": "int", "low": 7, "high": 9}}}, "outside the range 7 .. 9"),
        ({"dataset": "dtd", "data_root": "/nowhere"}, "nowhere"),
        ({"sampler": "json:loads"}, "json:loads fails: TypeError"),
        ({"pruner": "median", "goals": ("base", "new")}, "requires a single goal"),
    ],
    ids=str,
)
def test_what_cannot_run_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        plan_study(config_of(tmp_path, **options))
