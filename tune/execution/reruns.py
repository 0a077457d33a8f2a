"""Runs of settings that have been chosen: those that have no result yet are run, each result is kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback
from rich.console import Console

from prometar.config.settings import parse
from prometar.distributed.placement import ResourcePlan, Room
from prometar.errors import StorageError, UserError, WorkError
from prometar.io.files import read_bytes
from prometar.io.yamltext import parse_yaml
from prometar.training.run_result import FILE, RunResult, read_result
from tune.execution.course import Batch, Course
from tune.execution.jobs import ListedJobs, reason_of
from tune.execution.stopping import Stopping
from tune.jobs.files import JobFiles
from tune.jobs.spec import Job, Leg, Terms, jobs_in
from tune.optimizer.storage import GO_ON
from tune.results.schema import Run

_FIGURES = ("base", "new", "objective", "seconds")


@dataclass(frozen=True)
class Means:
    """What a study runs its jobs with."""

    trainable: type[tune.Trainable]
    plan: ResourcePlan
    room: Room
    terms: Terms
    stopping: Stopping
    console: Console
    verbose: bool = False


def run_missing(
    jobs: Sequence[Job], means: Means, *, what: str, required: bool = False
) -> Course[dict[str, str]]:
    """Run the jobs that have no result. Returns why jobs have failed, by their folder.

    Args:
        required: Whether all must come to an end: a choice among them waits for those whose workers died.
    Raises:
        WorkError: a required job's worker has died, each time; or nothing can be kept any more.
    """
    missing = [job for job in jobs if not _has_result(job)]
    listed = ListedJobs(missing, means.stopping, means.room)
    told = _Told(means.console, len(missing), what, listed)
    if missing:
        yield Batch(listed, [told])
    for reason in told.died.values():
        if required:
            raise WorkError(f"a {what} has ended without a result: {reason}; {GO_ON}")
    for job in missing:
        JobFiles(job).fetch()
    return told.reasons | told.died


def _has_result(job: Job) -> bool:
    """Whether all runs of a job have ended."""
    if not _results_here(job):
        JobFiles(job).fetch()
    return _results_here(job)


def _results_here(job: Job) -> bool:
    """Whether all results are there; a damaged one, or another run's, is none and is removed."""
    for leg in job.legs:
        path = _folder(job, leg)
        if (path / FILE).exists() and not _is_whole(job, leg, path):
            (path / FILE).unlink()
    return all((_folder(job, leg) / FILE).exists() for leg in job.legs)


def _is_whole(job: Job, leg: Leg, folder: Path) -> bool:
    """Whether a result is of a leg. Raises a StorageError where a file cannot be read now: it may be one."""
    config = folder / "config.yaml"
    try:
        described, result = read_bytes(config), read_bytes(folder / FILE)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageError(f"cannot read {error.filename or folder}: {error.strerror}; {GO_ON}") from None
    try:
        objective = RunResult.model_validate_json(result).objective  # which no configuration tells
        found = parse(parse_yaml(described.decode(), where=str(config)), where=str(config))
        return objective == job.objective and found == parse(leg.config, where=str(config))
    except (ValueError, UserError):
        return False


def runs_of(job: Job, reasons: Mapping[str, str]) -> list[Run]:
    """The figures of each of a job's runs, or why there are none."""
    found = []
    for leg in job.legs:
        path = _folder(job, leg) / FILE
        figures = _figures(path) if path.exists() else {"failed": reasons.get(job.run_dir, "no result")}
        found.append(Run(**leg.name, **figures))
    return found


def _figures(path: Path) -> dict[str, Any]:
    try:
        result = read_result(path.parent)
    except UserError:
        raise UserError(f"{path} is damaged: remove it, and run the same command again") from None
    figures = {key: float(result.result[key]) for key in _FIGURES if key in result.result}
    return {**figures, "cpus": result.cpus, "gpus": result.gpus}


def _folder(job: Job, leg: Leg) -> Path:
    return Path(job.run_dir) / leg.folder


class _Told(Callback):
    """Says a line for each job that ends, and keeps why jobs failed, by their folder."""

    def __init__(self, console: Console, total: int, what: str, jobs: ListedJobs) -> None:
        self._console, self._total, self._what, self._ended = console, total, what, 0
        self._jobs = jobs
        self.reasons: dict[str, str] = {}  # settings, data: it would fail again
        self.died: dict[str, str] = {}

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        result = trial.last_result
        if result.get("failed"):
            self._fail(trial, str(result["failed"]), self.reasons)
        elif result.get("finished"):  # else it was asked to stop
            self._say(trial, f"objective {result['objective']:.2f}")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        if trial.status == trial.ERROR and trial.trial_id not in self._jobs.replaced:  # else tried again
            self._fail(trial, reason_of(trial), self.died)

    def _fail(self, trial: Any, reason: str, kept: dict[str, str]) -> None:
        kept[jobs_in(trial.config)[0].run_dir] = reason
        self._say(trial, f"failed: {reason}")

    def _say(self, trial: Any, how: str) -> None:
        self._ended += 1
        name = Path(jobs_in(trial.config)[0].run_dir).name
        done = f"{self._ended} of {self._total} done"
        self._console.print(f"{self._what} {name}: {how}; {done}", markup=False)
