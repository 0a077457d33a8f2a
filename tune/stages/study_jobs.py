"""Jobs of search, confirmation and final test, and the results of these jobs."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from prometar.analysis.alignment import mean_cosine
from prometar.config.settings import Config, load_config
from prometar.data.datasets.catalog import file_name
from prometar.data.splits.objective import FINAL
from prometar.errors import PrometarError
from prometar.training.run_result import RESULT_FILE, read_result
from tune.config import StudyConfig
from tune.execution.job import Job
from tune.records.folder import StudyFolder
from tune.records.schema import RunScore, RunScores
from tune.space.ranges import Settings

JobRunner = Callable[[Sequence[Job]], Mapping[str, str]]
"""Function that runs jobs, skips those that are finished, and returns the failure reasons by job name."""


def trial_job(
    config: StudyConfig, folder: StudyFolder, number: int, settings: Settings, fresh_seed: int | None = None
) -> Job:
    """Return the job of a trial, or of its rerun with `fresh_seed` in the confirmation.

    The job has one run per dataset and seed. If there are several runs, each has a subfolder.
    """
    name, seeds, job_folder = f"trial {number}", config.search.seeds, folder.trial_folder(number)
    if fresh_seed is not None:
        name, seeds = f"confirmation of trial {number}, seed {fresh_seed}", (fresh_seed,)
        job_folder = folder.confirmation_folder(number, fresh_seed)
    runs = [(dataset, seed) for dataset in config.search.datasets for seed in seeds]
    configs = {
        job_folder / (f"{file_name(dataset)}-seed{seed}" if len(runs) > 1 else ""): config.run_config(
            settings, dataset=dataset, seed=seed
        )
        for dataset, seed in runs
    }
    return Job(name, configs, config.search.objective, config.search.val_per_class, number)


def final_job(
    config: StudyConfig, folder: StudyFolder, number: int, settings: Settings, dataset: str, seed: int
) -> Job:
    """Return a job of the final test: a run scored on the test images of base and new classes.

    Args:
        number: Number of the trial, or 0 for the default settings.
    """
    run_folder = folder.final_test_folder(number, dataset, seed)
    configs = {run_folder: config.run_config(settings, dataset=dataset, seed=seed, final=True)}
    tested = f"trial {number}" if number else "the default settings"
    name = f"final test of {tested}, {dataset}, seed {seed}"
    return Job(name, configs, FINAL, config.search.val_per_class, number, records_alignment=True)


def jobs_to_run(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs that still have to run. Invalid results are deleted first."""
    validity = [[_check_or_delete_result(job, *run) for run in job.configs.items()] for job in jobs]
    return [job for job, valid in zip(jobs, validity, strict=True) if not all(valid)]


def read_scores(job: Job, failures: Mapping[str, str]) -> RunScores:
    """Return the scores of a job's runs. If a run has no result, its score's `error` says why.

    Args:
        failures: Failure reasons by job name.
    """
    return tuple(_read_score(job, *run, failures.get(job.name, "no result")) for run in job.configs.items())


def _check_or_delete_result(job: Job, folder: Path, config: Config) -> bool:
    """Return True if the folder has a result of `config` and the job's objective. Delete any other result."""
    if not (folder / RESULT_FILE).exists():
        return False
    with suppress(PrometarError):
        previous, result = load_config(folder / "config.yaml"), read_result(folder)
        if previous.identity() == config.identity() and result.objective == job.objective:
            return True
    (folder / RESULT_FILE).unlink()
    return False


def _read_score(job: Job, folder: Path, config: Config, failure: str) -> RunScore:
    if not (folder / RESULT_FILE).exists():
        return RunScore(config.data.name, config.train.seed, error=failure)
    result, alignment = read_result(folder), mean_cosine(folder) if job.records_alignment else None
    return RunScore.of(config, result.last_epoch, cpus=result.cpus, gpus=result.gpus, alignment=alignment)
