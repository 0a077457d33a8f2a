"""Jobs of search, confirmation and final test, and the results of these jobs."""

from collections.abc import Mapping, Sequence
from itertools import count, product
from pathlib import Path

from prometar.analysis.alignment import mean_cosine
from prometar.config.settings import Config, load_config
from prometar.data.datasets.catalog import file_name
from prometar.data.splits.objective import FINAL
from prometar.errors import PrometarError, UserError
from prometar.io.files import file_size
from prometar.run_folder import has_all_predictions, has_other_images, used_same_images
from prometar.training.run_result import RESULT_FILE, RunResult, read_result
from tune.config import StudyConfig
from tune.execution.flows import Stage, Stages
from tune.execution.job import Job
from tune.records.folder import StudyFolder
from tune.records.schema import RunScore, RunScores
from tune.space.ranges import Settings


def trial_job(config: StudyConfig, folder: StudyFolder, number: int, settings: Settings) -> Job:
    """Return the job of a trial. It has one run per dataset and seed.

    Unlike for other jobs, the folder is not checked for other runs. The settings of a trial never change. Its
    scores are kept even if images are excluded later, because samplers compare all trials.
    """
    configs = _run_configs(config, settings, config.search.seeds, final_epochs=False)
    return Job(
        name=f"trial {number}",
        configs=_in_folders(folder.trial_folder(number), configs),
        objective=config.search.objective,
        val_per_class=config.search.val_per_class,
        trial_number=number,
    )


def trial_epochs(config: StudyConfig, settings: Settings, *, final_epochs: bool = False) -> int:
    """Return the number of epochs of the longest run of a trial that is not pruned.

    Args:
        final_epochs: True for the runs of the confirmation and the final test with the trial's settings.
    """
    configs = _run_configs(config, settings, (config.search.seed,), final_epochs=final_epochs)
    return max(each.train.epochs for each in configs)


def confirmation_job(
    config: StudyConfig, folder: StudyFolder, number: int, settings: Settings, seed: int
) -> Job:
    """Return the job that reruns a trial with a fresh seed, for as many epochs as the final test."""
    configs = _run_configs(config, settings, (seed,), final_epochs=True)
    return Job(
        name=f"confirmation of trial {number}, seed {seed}",
        configs=_in_matching_folders(folder.confirmation_folder(number, seed), configs),
        objective=config.search.objective,
        val_per_class=config.search.val_per_class,
        trial_number=number,
    )


def final_job(
    config: StudyConfig, folder: StudyFolder, number: int, settings: Settings, dataset: str, seed: int
) -> Job:
    """Return a job of the final test: a run scored on the test images of base and new classes.

    Args:
        number: Number of the trial, or 0 for the default settings.
    """
    run_config = config.run_config(settings, dataset=dataset, seed=seed, final_epochs=True)
    tested = f"trial {number}" if number else "the default settings"
    return Job(
        name=f"final test of {tested}, {dataset}, seed {seed}",
        configs=_in_matching_folders(folder.final_test_folder(number, dataset, seed), [run_config]),
        objective=FINAL,
        val_per_class=config.search.val_per_class,
        trial_number=number,
        records_alignment=True,
        predictions=config.test.predictions,
    )


def _run_configs(
    config: StudyConfig, settings: Settings, seeds: Sequence[int], *, final_epochs: bool
) -> list[Config]:
    """Return the configurations of the runs of a job, one per dataset and seed."""
    return [
        config.run_config(settings, dataset=dataset, seed=seed, final_epochs=final_epochs)
        for dataset, seed in product(config.search.datasets, seeds)
    ]


def _in_folders(job_folder: Path, configs: Sequence[Config]) -> dict[Path, Config]:
    """Return the configurations by folder. If there are several runs, each has a subfolder."""
    if len(configs) == 1:
        return {job_folder: configs[0]}
    by_folder: dict[Path, Config] = {}
    for config in configs:
        subfolder = f"{file_name(config.data.name)}-seed{config.train.seed}"
        by_folder[job_folder / subfolder] = config
    return by_folder


def _in_matching_folders(job_folder: Path, configs: Sequence[Config]) -> dict[Path, Config]:
    """Return the configurations by folder. Folders with runs of other settings or images are not used.

    The job's folder is the first of FOLDER, FOLDER-2, FOLDER-3, ... that contains no run with other settings,
    such as another `--final-epochs`, and no result with images that are excluded now. So finished runs are
    kept, and reused if settings or images are restored.
    """
    numbered_folder = job_folder
    for number in count(2):
        by_folder = _in_folders(numbered_folder, configs)
        if not any(_is_occupied(folder, config) for folder, config in by_folder.items()):
            break
        numbered_folder = job_folder.with_name(f"{job_folder.name}-{number}")
    return by_folder


def _is_occupied(folder: Path, config: Config) -> bool:
    """Return True if a folder contains a run with other settings, or a result with other images."""
    return _has_other_run(folder, config) or has_other_images(folder, config)


def _has_other_run(folder: Path, config: Config) -> bool:
    """Return True if a folder contains a run with other settings."""
    if file_size(folder / "config.yaml") is None:
        return False
    try:
        return load_config(folder / "config.yaml").identity() != config.identity()
    except PrometarError:  # for example, a configuration of another version
        return True


def jobs_to_run(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs that still have to run."""
    return [job for job in jobs if any(_must_run(job, folder) for folder in job.configs)]


def _must_run(job: Job, folder: Path) -> bool:
    """Return True if a run of the job lacks its result or, if they are requested, its predictions."""
    result = _result(job, folder)
    if result is None:
        return True
    return job.predictions and not has_all_predictions(folder, result.run_digest)


def run_unfinished(stage: str, jobs: Sequence[Job]) -> Stages[Mapping[str, str]]:
    """Yield a stage with the jobs that still have to run. Return the failure reasons by job name."""
    unfinished = jobs_to_run(jobs)
    if not unfinished:
        return {}
    failures = yield Stage(stage, iter(unfinished), total=len(jobs), done=len(jobs) - len(unfinished))
    return failures


def read_scores(job: Job, failures: Mapping[str, str]) -> RunScores:
    """Return the scores of a job's runs. If a run has no result, its score's `error` says why.

    Args:
        failures: Failure reasons by job name.
    """
    failure = failures.get(job.name, "no result")
    return tuple(_read_score(job, folder, config, failure) for folder, config in job.configs.items())


def _result(job: Job, folder: Path) -> RunResult | None:
    """Return the result of a run of the job. None if it is missing, corrupt, or that of another run."""
    config = job.configs[folder]
    try:
        if file_size(folder / RESULT_FILE) is None or _has_other_run(folder, config):
            return None
        result = read_result(folder)
    except UserError:
        return None
    if result.objective != job.objective or not used_same_images(result, config):
        return None
    return result


def _read_score(job: Job, folder: Path, config: Config, failure: str) -> RunScore:
    """Return the score of a run of the job. Its error is `failure` if the run has no result."""
    result = _result(job, folder)
    if result is None:
        return RunScore(config.data.name, config.train.seed, error=failure)
    if result.objective != FINAL:
        return RunScore.of(config, result.last_epoch, cpus=result.cpus, gpus=result.gpus)
    return RunScore.of(
        config,
        result.last_epoch,
        cpus=result.cpus,
        gpus=result.gpus,
        alignment=mean_cosine(folder) if job.records_alignment else None,
        metrics=result.metrics,
        joint_accuracies=result.joint_accuracies,
    )
