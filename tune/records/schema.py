"""Files of a study folder as typed records. Nothing else parses or writes them.

Files are read strictly: a missing or unknown key, a value of another type, a number that is not finite, or a
file of another version is one line that names the file and the field.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from math import isfinite
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    JsonValue,
    NaiveDatetime,
    NonNegativeInt,
    PlainValidator,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass

from prometar.errors import UserError
from prometar.io.files import read_bytes, size_of, write_atomically
from prometar.io.yamltext import read_yaml
from prometar.metrics import Interval

VERSION: Literal[3] = 3
"""Version of all files. It grows if a field is removed, changes meaning, or is added without a default."""

State = Literal["COMPLETE", "PRUNED", "FAIL"]
FigureName = Literal["objective", "base", "new", "seconds"]
Verdict = Literal["selected", "either", "baseline"]
"""Settings to use: the selected ones (shown better), either (no difference shown), the default settings."""
Figure = Annotated[float, Field(ge=-1e6, le=1e6)]
"""Percent, or the unit of a custom objective."""
Seconds = Annotated[float, Field(ge=0, le=1e10)]


def _setting(value: Any) -> Any:
    if isinstance(value, list | dict) or (isinstance(value, float) and not isfinite(value)):
        raise ValueError("must be a finite number, a text, true, false or null")
    return value


Setting = Annotated[bool | int | float | str | None, PlainValidator(_setting)]
Settings = Mapping[str, Setting]
"""Values by dotted key."""

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


def seed_means(runs: Iterable[RunScore], figure: FigureName = "objective") -> dict[int, float]:
    """Return the mean over datasets of one figure by seed, for seeds whose runs all have it."""
    groups: dict[int, list[float | None]] = {}
    for run in runs:
        groups.setdefault(run.seed, []).append(getattr(run, figure))
    known = {seed: [each for each in values if each is not None] for seed, values in groups.items()}
    return {seed: mean(known[seed]) for seed in sorted(groups) if len(known[seed]) == len(groups[seed])}


def _unique(key: Callable[[Any], object]) -> AfterValidator:
    def check(found: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(map(key, found))) < len(found):
            raise ValueError("duplicate entry")
        return found

    return AfterValidator(check)


Runs = Annotated[tuple[RunScore, ...], _unique(lambda run: (run.dataset, run.seed))]


@dataclass(frozen=True, config=_STRICT)
class Epoch:
    """Objective of a trial after an epoch, counted from 1."""

    epoch: NonNegativeInt
    objective: Figure


@dataclass(frozen=True, config=_STRICT)
class TrialRecord:
    """trials/NNNN/record.json: a finished trial of the search.

    Args:
        baseline: True if its settings are the default settings.
        objective, base, new: Percent after the last epoch, means over the runs.
        epoch: Last epoch. epochs: Objective by epoch.
        seconds: Training time of all runs together.
        notes: Notices for the user. reason: Error message if it failed.
    """

    number: NonNegativeInt
    state: State
    baseline: bool
    origin: Literal["baseline", "enqueued", "sampled"]
    settings: Settings
    objective: Figure | None
    base: Figure | None
    new: Figure | None
    epoch: NonNegativeInt
    epochs: tuple[Epoch, ...]
    runs: Runs
    seconds: Seconds
    cpus: Seconds = 0.0
    gpus: Seconds = 0.0
    notes: tuple[str, ...] = ()
    reason: str = ""
    started: NaiveDatetime | None = None
    ended: NaiveDatetime | None = None
    version: Literal[3] = VERSION

    @property
    def score(self) -> float | None:
        """Objective of a completed trial, None for others."""
        return self.objective if self.state == "COMPLETE" else None


def by_score(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the completed trials, highest objective first. Of equal trials, the earlier comes first."""
    scored = [(-t.score, t.number, t) for t in trials if t.score is not None]
    return [t for _, _, t in sorted(scored, key=lambda each: each[:2])]


@dataclass(frozen=True, config=_STRICT)
class Candidate:
    """Settings that were confirmed. `runs` are those of the search and those with fresh seeds."""

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
        return mean(self.by_seed.values()) if self.runs and all(run.finished for run in self.runs) else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds, None with fewer than two."""
        return stdev(self.by_seed.values()) if len(self.by_seed) > 1 else None


@dataclass(frozen=True, config=_STRICT)
class Confirmation:
    """confirmation.json: the best trials and the baseline, rerun with fresh seeds.

    Args:
        seeds: The fresh seeds.
        selected: Number of the candidate with the highest mean over all its seeds.
    """

    seeds: tuple[int, ...]
    candidates: Annotated[tuple[Candidate, ...], _unique(lambda candidate: candidate.number)]
    selected: NonNegativeInt
    version: Literal[3] = VERSION


@dataclass(frozen=True, config=_STRICT)
class SettingsUnderTest:
    """One side of the final test: a trial's settings."""

    number: NonNegativeInt
    settings: Settings


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
        same: True if the baseline was selected, so that there is nothing to compare.
        difference: Selected minus baseline in H. With several datasets, the interval over their means.
        alpha: Error probability of `difference`.
        dataset_alpha: Error probability of a dataset's interval at the last interim analysis.
        matters: Smallest difference in H that matters, if seed pairs were added until it was decided.
        detectable: Smallest true difference that four of five such tests would show.
        earlier_tests: (trial, seed pairs) of earlier final tests of this study.
    """

    seeds: tuple[int, ...]
    epochs: int
    selected: SettingsUnderTest
    baseline: SettingsUnderTest
    same: bool
    datasets: Mapping[str, DatasetTest]
    difference: Interval | None
    verdict: Verdict
    alpha: float = 0.05
    dataset_alpha: float = 0.05
    matters: Figure | None = None
    detectable: Figure | None = None
    earlier_tests: tuple[tuple[int, int], ...] = ()
    version: Literal[3] = VERSION

    @property
    def level(self) -> str:
        """Confidence level of `difference` in percent."""
        return f"{100 * (1 - self.alpha):g}"

    @property
    def dataset_level(self) -> str:
        """Confidence level of a dataset's intervals in percent."""
        return f"{100 * (1 - self.dataset_alpha):g}"

    @property
    def failures(self) -> list[str]:
        """Error messages of failed runs."""
        tests = self.datasets.values()
        return [run.failed for test in tests for run in (*test.selected, *test.baseline) if run.failed]


@dataclass(frozen=True, config=_STRICT)
class StudyRecord:
    """study.yaml.

    Args:
        config: The `StudyConfig` as a plain tree.
        score: Name of the objective's figure. leaks: True if the objective reads the test images.
        contents: Digests of splits, weights and custom components by name.
        command: Command that ran the study last.
        environment: Versions and machine of the last command.
        earlier_environments: Those of earlier commands that differ.
        seconds_searched: Duration of the search in earlier commands.
    """

    config: Mapping[str, JsonValue]
    score: str
    leaks: bool
    contents: Mapping[str, str]
    command: str
    environment: Mapping[str, str]
    earlier_environments: tuple[Mapping[str, str], ...] = field(default=())
    seconds_searched: Seconds = 0.0
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
