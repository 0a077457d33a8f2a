"""Records of a study. All other modules read and write record files through this module.

Validation is strict. A missing or unknown key, a wrong type, a non-finite number or another format version
causes an error that names the file and the problem in one line.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import ConfigDict, Field, NaiveDatetime, NonNegativeInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from prometar.config.settings import Config
from prometar.errors import UserError
from prometar.io.files import file_size, read_bytes, write_atomically
from prometar.io.yamltext import dump_yaml, read_yaml
from prometar.metrics import Interval
from prometar.training.classification import ClassificationMetrics, Percent
from tune.config import Goal, StudyConfig
from tune.space.ranges import Settings

VERSION: Literal[3] = 3
"""Version of the file formats. Increment it if a field is removed, changed, or added without a default."""

State = Literal["COMPLETE", "PRUNED", "FAIL"]
Verdict = Literal["selected", "either", "baseline"]
"""Settings to use: selected, default (baseline), or either if neither is shown to be better."""
SettingsName = Literal["selected", "baseline"]
"""Name of the settings in a final test."""
Score = Annotated[float, Field(ge=-1e6, le=1e6)]
"""Score in percent, or in the unit of a custom objective."""
NonNegative = Annotated[float, Field(ge=0, le=1e10)]

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, validate_by_name=True)

# Types of fields whose keys in record files (aliases) differ from their names. Earlier versions wrote these
# keys, too.
_Digests = Annotated[Mapping[str, str], Field(alias="contents")]
_ReadsTestImages = Annotated[bool, Field(alias="leaks")]
_Error = Annotated[str, Field(alias="failed")]
_IsBaseline = Annotated[bool, Field(alias="baseline")]
_ScoresByEpoch = Annotated[Mapping[NonNegativeInt, Score], Field(alias="epochs")]
_ScoreName = Annotated[str, Field(alias="score")]
_SelectedNumber = Annotated[NonNegativeInt, Field(alias="selected")]
_MinRelevant = Annotated[Score | None, Field(alias="matters")]


@dataclass(frozen=True, config=_STRICT)
class RunScore:
    """Result of one training run of a trial, the confirmation or the final test.

    Args:
        base, new: Accuracies on base and new classes in percent. None if not measured.
        objective: Score of the run. None if not measured.
        seconds: Training time in seconds. None if unknown.
        error: Error message, or "" if the run did not fail.
        cpus, gpus: Numbers of allocated CPUs and GPUs. None if unknown.
        alignment: Mean cosine of the support and query gradients during training, None if not measured.
        metrics: Other metrics of a final-test run, by evaluation set. Empty for runs of version 0.2.
        joint_accuracies: Accuracies on the sets "base" and "new" in percent, if each image is classified
            among base and new classes together. Empty if not measured.
    """

    dataset: str
    seed: int
    base: Score | None = None
    new: Score | None = None
    objective: Score | None = None
    seconds: NonNegative | None = None
    error: _Error = ""
    cpus: NonNegative | None = None
    gpus: NonNegative | None = None
    alignment: float | None = None
    metrics: Mapping[str, ClassificationMetrics] = Field(default_factory=dict)
    joint_accuracies: Mapping[str, Percent] = Field(default_factory=dict)

    @classmethod
    def of(cls, config: Config, metrics: Mapping[str, Any], /, **fields: Any) -> Self:
        """Create the score of a run.

        Args:
            config: Configuration of the run.
            metrics: Measured values by name, such as those of an epoch.
            fields: Values of other fields.
        """
        names = ("base", "new", "objective", "seconds")
        measured: dict[str, Any] = {name: metrics.get(name) for name in names}
        return cls(dataset=config.data.name, seed=config.train.seed, **measured, **fields)


RunScores = tuple[RunScore, ...]


def seed_means(runs: Iterable[RunScore], metric: Goal = "objective") -> dict[int, float]:
    """Return, by seed, the mean of a metric over datasets. Seeds with a missing value are omitted."""
    groups: dict[int, list[RunScore]] = {}
    for run in runs:
        groups.setdefault(run.seed, []).append(run)
    means = {seed: mean_of(group, metric) for seed, group in sorted(groups.items())}
    return {seed: value for seed, value in means.items() if value is not None}


def mean_of(runs: Iterable[RunScore], metric: Goal = "objective") -> float | None:
    """Return the mean of a metric over runs, or None if there are no runs or a value is missing."""
    values = [getattr(run, metric) for run in runs]
    if not values or None in values:
        return None
    return mean(values)


PARTS = ("base", "new")
"""Evaluation sets of the final test: images of the base classes and of the new classes."""


def metrics_by_part(runs: RunScores) -> dict[str, list[ClassificationMetrics]]:
    """Return the metrics of each run by evaluation set ("base" or "new").

    Runs without metrics, and runs whose classes differ from those of the first run, are left out. Evaluation
    sets without metrics are left out, too.
    """
    by_part: dict[str, list[ClassificationMetrics]] = {}
    for part in PARTS:
        all_metrics = [run.metrics[part] for run in runs if part in run.metrics]
        if not all_metrics:
            continue
        classnames = all_metrics[0].classnames
        by_part[part] = [metrics for metrics in all_metrics if metrics.classnames == classnames]
    return by_part


@dataclass(frozen=True, config=_STRICT)
class EpochReport:
    """Result of one epoch of a job.

    A worker trains all runs of a job together, such as the runs of a trial.

    Args:
        epoch: Number of the epoch, counted from 1. 0 if no epoch has ended yet.
        runs: Score of each run.
        loss: Mean training loss, None if nothing was trained.
        finished: True if this is the last report of the job.
        error: Error message, or "" if the job did not fail.
        notes: Notes for the user, e.g. "started over: the checkpoint is corrupt".
    """

    epoch: NonNegativeInt = 0
    runs: RunScores = ()
    loss: float | None = None
    finished: bool = False
    error: _Error = ""
    notes: tuple[str, ...] = ()

    @property
    def objective(self) -> float | None:
        """Mean objective over the runs, None if a run has no objective."""
        return mean_of(self.runs)

    @property
    def metrics(self) -> dict[str, float]:
        """Measured values by name: means of the scores over runs, the sum of `seconds`, and the loss."""
        values: dict[str, float | None] = {
            "objective": mean_of(self.runs, "objective"),
            "base": mean_of(self.runs, "base"),
            "new": mean_of(self.runs, "new"),
            "loss": self.loss,
        }
        if self.runs:
            values["seconds"] = sum(run.seconds or 0.0 for run in self.runs)
        return {name: value for name, value in values.items() if value is not None}


REPORT_ADAPTER = TypeAdapter(EpochReport)
"""Converter of epoch reports to and from JSON."""


@dataclass(frozen=True, config=_STRICT)
class TrialRecord:
    """trials/NNNN/record.json: a completed, pruned or failed trial of the search.

    Args:
        origin: Source of the settings: the defaults (baseline), `--enqueue`, or the sampler.
        source: File, or trial of another study, of enqueued settings. "" for other trials.
        objective, base, new: Score, and accuracies on base and new classes in percent, as means over the runs
            after the last epoch. None if not measured.
        epoch: Number of the last epoch.
        scores_by_epoch: Mean objective over the runs after each epoch, by epoch number (from 1).
        seconds: Training time in seconds, summed over the runs.
        notes: Notes for the user.
        reason: Failure reason, or "" if the trial did not fail.
        started, ended: Local times at which the trial started and ended. None if unknown.
    """

    number: NonNegativeInt
    state: State
    origin: Literal["baseline", "enqueued", "sampled"]
    settings: Settings
    objective: Score | None
    base: Score | None
    new: Score | None
    epoch: NonNegativeInt
    scores_by_epoch: _ScoresByEpoch
    runs: RunScores
    seconds: NonNegative
    notes: tuple[str, ...] = ()
    reason: str = ""
    started: NaiveDatetime | None = None
    ended: NaiveDatetime | None = None
    source: str = ""
    version: Literal[3] = VERSION

    @property
    def is_baseline(self) -> bool:
        return self.origin == "baseline"

    @property
    def objective_if_completed(self) -> float | None:
        """Objective of a completed trial, None for other trials."""
        return self.objective if self.state == "COMPLETE" else None


def rank_completed(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the completed trials, highest objective first. Ties are ordered by trial number."""
    completed = [trial for trial in trials if trial.objective_if_completed is not None]
    return sorted(completed, key=lambda trial: (-(trial.objective_if_completed or 0.0), trial.number))


@dataclass(frozen=True, config=_STRICT)
class Candidate:
    """Settings that may be selected.

    Args:
        runs: Runs on which the selection is based: those of the search, then those with fresh seeds. If the
            confirmation trains for more epochs than the search, only those with fresh seeds.
    """

    number: NonNegativeInt
    is_baseline: _IsBaseline
    settings: Settings
    runs: RunScores

    @property
    def mean_by_seed(self) -> dict[int, float]:
        """Mean objective over the datasets, by seed."""
        return seed_means(self.runs)

    @property
    def mean(self) -> float | None:
        """Mean objective over all runs, None if a run has no objective."""
        return mean_of(self.runs)


@dataclass(frozen=True, config=_STRICT)
class Confirmation:
    """confirmation.json: reruns of the best trials and the baseline with fresh seeds.

    Args:
        seeds: Fresh seeds. Empty for a single candidate, which is not rerun.
        selected_number: Trial number of the candidate with the highest mean over all its seeds.
    """

    seeds: tuple[int, ...]
    candidates: tuple[Candidate, ...]
    selected_number: _SelectedNumber
    version: Literal[3] = VERSION

    @property
    def fresh_runs(self) -> list[RunScore]:
        """Runs of all candidates with the fresh seeds. All other runs of candidates belong to the search."""
        fresh_runs: list[RunScore] = []
        for candidate in self.candidates:
            fresh_runs += [run for run in candidate.runs if run.seed in self.seeds]
        return fresh_runs

    @property
    def selected_candidate(self) -> Candidate:
        """Candidate with the number `selected_number`."""
        return next(candidate for candidate in self.candidates if candidate.number == self.selected_number)


@dataclass(frozen=True, config=_STRICT)
class DatasetTest:
    """Final test on one dataset.

    Args:
        selected, baseline: One run per seed with the selected and with the default settings. If the baseline
            was selected, both contain the same runs.
        difference: Mean of selected minus baseline in H, and its interval over seed pairs, in points. None if
            the baseline was selected, or for fewer than two pairs.
        base_difference, new_difference: Like `difference`, for base and new accuracy.
        published: Published H of the method in percent, None if unknown or not comparable.
    """

    selected: RunScores
    baseline: RunScores
    difference: Interval | None
    base_difference: Interval | None = None
    new_difference: Interval | None = None
    published: Score | None = None

    @property
    def selected_failures(self) -> list[str]:
        """Error messages of runs that failed with the selected but not with the default settings."""
        baseline_failures = {run.seed for run in self.baseline if run.error}
        return [run.error for run in self.selected if run.error and run.seed not in baseline_failures]


def paired_differences(
    selected: Sequence[RunScore], baseline: Sequence[RunScore], metric: str = "objective"
) -> dict[int, float]:
    """Return the difference in `metric`, selected minus baseline, of each seed that has both values."""
    baseline_values = {run.seed: getattr(run, metric) for run in baseline}
    differences: dict[int, float] = {}
    for run in selected:
        selected_value = getattr(run, metric)
        baseline_value = baseline_values.get(run.seed)
        if selected_value is not None and baseline_value is not None:
            differences[run.seed] = selected_value - baseline_value
    return differences


def mean_differences(tests: Iterable[DatasetTest], metric: str = "objective") -> dict[int, float]:
    """Return, by seed, the difference in `metric`, selected minus baseline, averaged over the datasets.

    Seeds that lack a value on any of the datasets are omitted.
    """
    by_dataset = [paired_differences(test.selected, test.baseline, metric) for test in tests]
    means: dict[int, float] = {}
    for seed in by_dataset[0]:
        if all(seed in differences for differences in by_dataset):
            means[seed] = mean(differences[seed] for differences in by_dataset)
    return means


@dataclass(frozen=True, config=_STRICT)
class FinalTest:
    """finals.json: comparison of the selected and the default settings on the test images.

    Args:
        seeds: Seeds of the seed pairs. A pair is a run with the selected and a run with the default settings.
        epochs: Epochs (`--final-epochs`) per run, or per baseline run if the search sets the epochs.
        selected: Selected settings, with the runs on which the selection is based.
        datasets: Results by dataset.
        difference: Mean of selected minus baseline in H, and its interval over the seed pairs, in points.
            With several datasets, the difference of a pair is its mean over the datasets. None if the
            baseline was selected, or if fewer than two pairs finished.
        verdict: Settings to use.
        alpha: Significance level of all intervals. It depends on the number of seed pairs.
        min_relevant: Smallest relevant difference in H in points, None if the number of seed pairs was fixed.
        detectable: Smallest true difference in H, in points, that the test detects with 80% power. None if
            fewer than two pairs finished.
        earlier_tests: Trial numbers of the settings that earlier final tests compared with the baseline.
        extended_after: Numbers of seed pairs after which a user saw a result and changed `--final-seeds`.
    """

    seeds: tuple[int, ...]
    epochs: int
    selected: Candidate
    datasets: Annotated[Mapping[str, DatasetTest], Field(min_length=1)]
    difference: Interval | None
    verdict: Verdict
    alpha: float = 0.05
    min_relevant: _MinRelevant = None
    detectable: Score | None = None
    earlier_tests: tuple[int, ...] = ()
    extended_after: tuple[int, ...] = ()
    version: Literal[3] = VERSION

    @property
    def baseline_selected(self) -> bool:
        """True if the baseline was selected, so that there is nothing to compare."""
        return self.selected.is_baseline

    @property
    def is_sequential(self) -> bool:
        """True if the test may stop after any of several analyses (`--final-seeds auto`)."""
        return self.min_relevant is not None

    @property
    def interval_name(self) -> str:
        """Name of all intervals of this test, with their confidence level.

        "sequential" means that the level holds although the test may stop early. "unadjusted" means that the
        level does not hold, because a user saw a result and changed the seeds.
        """
        if self.extended_after:
            return "unadjusted 95% CI"
        return "sequential 95% CI" if self.is_sequential else "95% CI"

    @property
    def recommends_baseline(self) -> bool:
        """True if the verdict is "baseline", or "either" while the default settings have a higher mean."""
        if self.verdict != "either":
            return self.verdict == "baseline"
        if self.difference is not None:
            return self.difference.mean < 0
        # `difference` is None if only one seed pair finished. That pair has a difference, but no interval.
        differences = mean_differences(self.datasets.values())
        return any(difference < 0 for difference in differences.values())

    @property
    def compared_names(self) -> list[SettingsName]:
        """Names of the compared settings, or only "baseline" if the baseline was selected."""
        return ["baseline"] if self.baseline_selected else ["selected", "baseline"]

    def runs(self, *names: SettingsName) -> list[RunScore]:
        """Return the runs with the named settings (default: all) on all datasets."""
        runs: list[RunScore] = []
        for name in names or self.compared_names:
            for test in self.datasets.values():
                runs += getattr(test, name)
        return runs

    @property
    def failures(self) -> list[str]:
        """Error messages of failed runs."""
        return [run.error for run in self.runs() if run.error]

    @property
    def selected_failures(self) -> list[str]:
        """Error messages of runs that failed with the selected but not with the default settings."""
        messages: list[str] = []
        for test in self.datasets.values():
            messages += test.selected_failures
        return messages


@dataclass(frozen=True, config=_STRICT)
class ClassSplit:
    """Base classes of a dataset, on which runs train, and new classes, which are only tested."""

    base: tuple[str, ...]
    new: tuple[str, ...]


@dataclass(frozen=True, config=_STRICT)
class StudyRecord:
    """study.yaml: configuration and environment of a study.

    Args:
        score_name: Name of the score that the search maximizes, such as "H".
        reads_test_images: True if the search reads test images, which biases the final test.
        digests: Digests by name of all inputs that affect results, except settings. An example is a split.
        id: Random name of the study. It stays the same if the folder moves. "" in studies of version 0.2.0.
        command: Last command that ran the study.
        environment: Software versions and machine of the last command.
        earlier_environments: Environments of earlier commands, if different from `environment`.
        classes: Base and new classes by dataset. Empty in studies of earlier versions.
        excluded: Paths of the excluded images by dataset, as of the last command.
        exclusion_notes: Remarks on trials that used images which have been excluded since.
    """

    config: StudyConfig
    score_name: _ScoreName
    reads_test_images: _ReadsTestImages
    digests: _Digests
    command: str
    environment: Mapping[str, str]
    earlier_environments: tuple[Mapping[str, str], ...] = ()
    classes: Mapping[str, ClassSplit] = Field(default_factory=dict)
    id: str = ""
    excluded: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    exclusion_notes: tuple[str, ...] = ()
    version: Literal[3] = VERSION


Record = TypeVar("Record", bound=StudyRecord | TrialRecord | Confirmation | FinalTest)
SingleRecord = TypeVar("SingleRecord", bound=StudyRecord | Confirmation | FinalTest)
"""Record of which a study has only one."""

_ADAPTERS: dict[type, TypeAdapter[Any]] = {
    kind: TypeAdapter(kind) for kind in (StudyRecord, TrialRecord, Confirmation, FinalTest)
}


def read_record(path: Path, kind: type[Record]) -> Record | None:
    """Return the record in a file, or None if the file does not exist.

    Raises:
        UserError: the file cannot be read, is corrupt, or has another file format.
    """
    if file_size(path) is None:
        return None
    try:
        text = read_bytes(path).decode() if path.suffix == ".json" else json.dumps(read_yaml(path))
        data = json.loads(text)
        if isinstance(data, dict) and data.get("version") != VERSION:
            file_format = str(data.get("version"))[:20]
            raise UserError(
                f"{path} has file format {file_format}, but this release reads format {VERSION}. "
                "Use the prometar release that wrote it, or another study (--study NAME)."
            )
        return _ADAPTERS[kind].validate_json(text, by_alias=True, by_name=False)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "top level"  # no location: the record as a whole
        message = first["msg"].removeprefix("Value error, ")
        problem = f"{field}: {message}"
    except (TypeError, ValueError, RecursionError) as error:  # invalid JSON, deep nesting, or YAML dates
        problem = str(error).splitlines()[0][:100]
    fix = "Restore it from a backup" if kind is StudyRecord else "Remove it, then rerun the command to resume"
    raise UserError(f"{path} is corrupt ({problem}). {fix}.")


def write_record(path: Path, record: Record) -> None:
    """Write a record as JSON or, if the name of the file does not end in ".json", as YAML.

    Raises:
        InfrastructureError: the disk is full, or the folder is not writable.
    """
    adapter = _ADAPTERS[type(record)]
    if path.suffix == ".json":
        content = adapter.dump_json(record, indent=1, by_alias=True)
    else:
        data = adapter.dump_python(record, mode="json", by_alias=True)
        content = dump_yaml(data).encode()

    write_atomically(path, content)
