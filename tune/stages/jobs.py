"""Jobs of the three stages, and the results that they leave in their folders."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from prometar.analysis.alignment import mean_cosine
from prometar.config.settings import load_config, parse
from prometar.data.datasets.catalog import file_name
from prometar.data.splits.objective import FINAL
from prometar.errors import PrometarError
from prometar.training.run_result import FILE, read_result
from tune.config import StudyConfig
from tune.execution.jobs import Job, RunSpec
from tune.records.folder import StudyFolder
from tune.records.schema import RunScore, Settings, TrialRecord


def trial_job(config: StudyConfig, folder: StudyFolder, number: int, settings: Settings) -> Job:
    """Job of a trial: a run for each dataset and seed, scored by the search's objective."""
    runs = _runs(config, settings, config.search.seeds, folder.trial(number))
    return Job(f"trial {number}", runs, config.search.objective, config.search.val_per_class, number)


def confirmation_job(config: StudyConfig, folder: StudyFolder, trial: TrialRecord, seed: int) -> Job:
    """Job of a trial's settings with a fresh seed, scored by the search's objective."""
    runs = _runs(config, trial.settings, [seed], folder.confirmation(trial.number, seed))
    name = f"confirmation of trial {trial.number}, seed {seed}"
    return Job(name, runs, config.search.objective, config.search.val_per_class, trial.number)


def final_job(
    config: StudyConfig, folder: StudyFolder, number: int, settings: Settings, dataset: str, seed: int
) -> Job:
    """Job of the final test: one run on all base classes, tested on the test images."""
    run = RunSpec(
        _plain(config, settings, dataset, seed, epochs=config.test.epochs),
        str(folder.final(number, dataset, seed)),
    )
    who = "the default settings" if number == 0 else f"trial {number}"
    return Job(
        f"final test of {who}, {dataset}, seed {seed}",
        (run,),
        FINAL,
        config.search.val_per_class,
        number,
        alignment=True,
    )


def _runs(config: StudyConfig, settings: Settings, seeds: Sequence[int], folder: Path) -> tuple[RunSpec, ...]:
    """A run for each dataset and seed. A single run lies in the folder itself."""
    keys = [(dataset, seed) for dataset in config.search.datasets for seed in seeds]
    return tuple(
        RunSpec(
            _plain(config, settings, dataset, seed),
            str(folder / (f"{file_name(dataset)}-seed{seed}" if len(keys) > 1 else "")),
        )
        for dataset, seed in keys
    )


def missing(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs that lack the result of a run."""
    return [job for job in jobs if not all(_has_result(job, run) for run in job.runs)]


def scores(job: Job, failures: Mapping[str, str]) -> tuple[RunScore, ...]:
    """Return the figures of a job's runs, or why they are missing.

    Args:
        failures: Reasons by name of the job.
    """
    return tuple(_score(job, run, failures.get(job.name, "no result")) for run in job.runs)


def _plain(
    config: StudyConfig, settings: Settings, dataset: str, seed: int, epochs: int | None = None
) -> dict[str, object]:
    return config.configured(settings, dataset=dataset, seed=seed, epochs=epochs).model_dump(mode="json")


def _has_result(job: Job, run: RunSpec) -> bool:
    """True if the folder holds the result of this very run.

    A corrupt result, or one of another objective or configuration, is removed: the run is repeated.
    """
    folder = Path(run.folder)
    if not (folder / FILE).exists():
        return False
    try:
        own = load_config(folder / "config.yaml") == parse(run.config, where=job.name)
        if own and read_result(folder).objective == job.objective:
            return True
    except PrometarError:
        pass
    (folder / FILE).unlink()
    return False


def _score(job: Job, run: RunSpec, failure: str) -> RunScore:
    folder = Path(run.folder)
    if not (folder / FILE).exists():
        return RunScore(dataset=run.dataset, seed=run.seed, failed=failure)
    result = read_result(folder)
    figures = result.result
    return RunScore(
        dataset=run.dataset,
        seed=run.seed,
        objective=_float(figures.get("objective")),
        base=_float(figures.get("base")),
        new=_float(figures.get("new")),
        seconds=float(result.result["seconds"]),
        cpus=result.cpus,
        gpus=result.gpus,
        alignment=mean_cosine(folder) if job.objective == FINAL else None,
    )


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)
