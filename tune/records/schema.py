"""Files of a study folder as typed records. Nothing else parses or writes them.

Files are read strictly: a missing or unknown key, a value of another type, a number that is not finite, or a
file of another version is one line that names the file and the field.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import ConfigDict, Field, NaiveDatetime, NonNegativeInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from prometar.errors import UserError
from prometar.io.files import read_bytes, size_of, write_atomically
from prometar.io.yamltext import read_yaml
from prometar.metrics import Interval
from tune.config import Goal, StudyConfig
from tune.space.ranges import Settings

VERSION: Literal[3] = 3
"""Version of all files. It grows if a field is removed, changes meaning, or is added without a default."""

State = Literal["COMPLETE", "PRUNED", "FAIL"]
Verdict = Literal["selected", "either", "baseline"]
"""Settings to use: the selected ones (shown better), either (no difference shown), the default settings."""
Figure = Annotated[float, Field(ge=-1e6, le=1e6)]
"""Percent, or the unit of a custom objective."""
Seconds = Annotated[float, Field(ge=0, le=1e10)]

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, config=_STRICT)
class RunScore:
    """Result of one training run of a trial, of the confirmation or of the final test.

    Args:
        base, new, objective: Percent, None if not scored. All are None if the run failed.
        seconds: Training time.
        failed: Error message, "" if the run finished.
        cpus, gpus: Allocated resources, None if unknown.
        alignment: Mean cosine of the inner and outer gradients, None if not measured.
    """

    dataset: str
    seed: int
    base: Figure | None = None
    new: Figure | None = None
    objective: Figure | None = None
    seconds: Seconds | None = None
    failed: str = ""
    cpus: Seconds | None = None
    gpus: Seconds | None = None
    alignment: float | None = None

    @property
    def finished(self) -> bool:
        return self.objective is not None


Runs = tuple[RunScore, ...]


def seed_means(runs: Iterable[RunScore], figure: Goal = "objective") -> dict[int, float]:
    """Return the mean over datasets of one figure by seed, for seeds whose runs all have it."""
    groups: dict[int, list[RunScore]] = {}
    for run in runs:
        groups.setdefault(run.seed, []).append(run)
    means = {seed: mean_of(group, figure) for seed, group in sorted(groups.items())}
    return {seed: value for seed, value in means.items() if value is not None}


def mean_of(runs: Iterable[RunScore], figure: Goal = "objective") -> float | None:
    """Return the mean of one figure over runs, None if there are none or one lacks it."""
    values = [getattr(run, figure) for run in runs]
    return mean(values) if values and None not in values else None


@dataclass(frozen=True, config=_STRICT)
class EpochReport:
    """Result of one epoch of a job, as its worker reports it.

    Args:
        epoch: Counted from 1.
        runs: Figures of each run. Those of the job are means over them, and the sum of their seconds.
        loss: Mean training loss.
        finished: True in the last report of a job.
        failed: Error message, "" if the job did not fail.
        notes: Notices for the user, e.g. "started over: the checkpoint is corrupt".
    """

    epoch: NonNegativeInt = 0
    runs: Runs = ()
    loss: float | None = None
    finished: bool = False
    failed: str = ""
    notes: tuple[str, ...] = ()

    @property
    def objective(self) -> float | None:
        return mean_of(self.runs)

    @property
    def base(self) -> float | None:
        return mean_of(self.runs, "base")

    @property
    def new(self) -> float | None:
        return mean_of(self.runs, "new")

    @property
    def seconds(self) -> float:
        return sum(run.seconds or 0.0 for run in self.runs)


REPORT = TypeAdapter(EpochReport)


@dataclass(frozen=True, config=_STRICT)
class TrialRecord:
    """trials/NNNN/record.json: a finished trial of the search.

    Args:
        origin: Origin of its settings. The baseline has the default settings.
        objective, base, new: Percent after the last epoch, means over the runs.
        epoch: Last epoch. epochs: Objective by epoch, counted from 1.
        seconds: Training time of all runs together.
        notes: Notices for the user. reason: Error message if it failed.
    """

    number: NonNegativeInt
    state: State
    origin: Literal["baseline", "enqueued", "sampled"]
    settings: Settings
    objective: Figure | None
    base: Figure | None
    new: Figure | None
    epoch: NonNegativeInt
    epochs: Mapping[NonNegativeInt, Figure]
    runs: Runs
    seconds: Seconds
    notes: tuple[str, ...] = ()
    reason: str = ""
    started: NaiveDatetime | None = None
    ended: NaiveDatetime | None = None
    version: Literal[3] = VERSION

    @property
    def baseline(self) -> bool:
        return self.origin == "baseline"

    @property
    def score(self) -> float | None:
        """Objective of a completed trial, None for others."""
        return self.objective if self.state == "COMPLETE" else None


def by_score(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the completed trials, highest objective first. Of equal trials, the earlier comes first."""
    completed = [trial for trial in trials if trial.score is not None]
    return sorted(completed, key=lambda trial: (-(trial.score or 0.0), trial.number))


@dataclass(frozen=True, config=_STRICT)
class Candidate:
    """Settings that may be selected. `runs` are those of the search and those with fresh seeds."""

    number: NonNegativeInt
    baseline: bool
    settings: Settings
    runs: Runs

    @property
    def by_seed(self) -> dict[int, float]:
        """Objective by seed, a mean over the datasets."""
        return seed_means(self.runs)

    @property
    def mean(self) -> float | None:
        """Mean objective over all seeds, None if a run failed."""
        return mean_of(self.runs)


@dataclass(frozen=True, config=_STRICT)
class Confirmation:
    """confirmation.json: the best trials and the baseline, rerun with fresh seeds.

    Args:
        seeds: The fresh seeds.
        selected: Number of the candidate with the highest mean over all its seeds.
    """

    seeds: tuple[int, ...]
    candidates: tuple[Candidate, ...]
    selected: NonNegativeInt
    version: Literal[3] = VERSION

    @property
    def selected_candidate(self) -> Candidate:
        return next(each for each in self.candidates if each.number == self.selected)


@dataclass(frozen=True, config=_STRICT)
class DatasetTest:
    """Final test on one dataset.

    Args:
        selected, baseline: Runs by seed. They are the same runs if the baseline was selected.
        difference, base_difference, new_difference: Selected minus baseline in points of H, base and new
            accuracy, paired by seed. None with fewer than two pairs.
        published: Published H of the method, if known.
    """

    selected: Runs
    baseline: Runs
    difference: Interval | None
    base_difference: Interval | None = None
    new_difference: Interval | None = None
    published: Figure | None = None


@dataclass(frozen=True, config=_STRICT)
class FinalTest:
    """finals.json: selected and default settings on the test images.

    Args:
        epochs: Epochs of each run. Searched epochs take precedence for the selected settings.
        selected: The settings under test, with the runs that selected them.
        difference: Selected minus baseline in H. With several datasets, the interval over their means.
        alpha: Error probability of a dataset's interval at the last interim analysis.
        matters: Smallest difference in H that matters, if seed pairs were added until it was decided.
        detectable: Smallest true difference that four of five such tests would show.
        earlier_tests: Trials of earlier final tests of this study.
    """

    seeds: tuple[int, ...]
    epochs: int
    selected: Candidate
    datasets: Mapping[str, DatasetTest]
    difference: Interval | None
    verdict: Verdict
    alpha: float = 0.05
    matters: Figure | None = None
    detectable: Figure | None = None
    earlier_tests: tuple[int, ...] = ()
    version: Literal[3] = VERSION

    @property
    def same(self) -> bool:
        """True if the baseline was selected, so that there is nothing to compare."""
        return self.selected.baseline

    @property
    def level(self) -> str:
        """Confidence level of `difference` in percent."""
        return "95" if len(self.datasets) > 1 else self.dataset_level

    @property
    def dataset_level(self) -> str:
        """Confidence level of a dataset's intervals in percent."""
        return f"{100 * (1 - self.alpha):g}"

    @property
    def failures(self) -> list[str]:
        """Error messages of failed runs."""
        tests = self.datasets.values()
        return [run.failed for test in tests for run in (*test.selected, *test.baseline) if run.failed]


@dataclass(frozen=True, config=_STRICT)
class StudyRecord:
    """study.yaml.

    Args:
        score: Name of the objective's figure. leaks: True if the objective reads the test images.
        contents: Digests of splits, weights and custom components by name.
        command: Command that ran the study last.
        environment: Versions and machine of the last command.
        earlier_environments: Those of earlier commands that differ.
    """

    config: StudyConfig
    score: str
    leaks: bool
    contents: Mapping[str, str]
    command: str
    environment: Mapping[str, str]
    earlier_environments: tuple[Mapping[str, str], ...] = ()
    version: Literal[3] = VERSION


Record = TypeVar("Record", StudyRecord, TrialRecord, Confirmation, FinalTest)

_ADAPTERS: dict[type, TypeAdapter[Any]] = {
    kind: TypeAdapter(kind) for kind in (StudyRecord, TrialRecord, Confirmation, FinalTest)
}


def read_record(path: Path, kind: type[Record]) -> Record | None:
    """Return the record in a file, or None if the file does not exist.

    Raises:
        UserError: the file cannot be read, is corrupt, or has another version.
    """
    if size_of(path) is None:
        return None
    try:
        text = read_bytes(path).decode() if path.suffix == ".json" else json.dumps(read_yaml(path))
        found = json.loads(text)
        if isinstance(found, dict) and found.get("version") != VERSION:
            raise UserError(
                f"{path} has version {str(found.get('version'))[:20]}, but this prometar reads version "
                f"{VERSION}. Use the prometar that wrote it, or start another study with --study NAME."
            )
        record: Record = _ADAPTERS[kind].validate_json(text)
        return record
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "top level"
        problem = f"{place}: {first['msg'].removeprefix('Value error, ')}"
    except (TypeError, ValueError, RecursionError) as error:  # not JSON, nested too deeply, YAML with dates
        problem = str(error).splitlines()[0][:100]
    fix = "Restore it from a backup" if kind is StudyRecord else "Remove it, then rerun the command to resume"
    raise UserError(f"{path} is corrupt ({problem}). {fix}.")


def write_record(path: Path, record: Record) -> None:
    """Write a record as JSON or YAML.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    adapter = _ADAPTERS[type(record)]
    if path.suffix == ".json":
        content = adapter.dump_json(record, indent=1)
    else:
        content = yaml.safe_dump(adapter.dump_python(record, mode="json"), sort_keys=False).encode()
    write_atomically(path, content)
