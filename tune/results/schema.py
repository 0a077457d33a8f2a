"""The files of a study's folder as typed records: nothing else parses or writes them.

A file is read strictly: a missing or unknown key, a value of another type, a number that is not finite, or a
file of another version is one line that names the file and the field.
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

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

from prometar.errors import UserError
from prometar.io.files import read_bytes, write_atomically
from prometar.io.yamltext import read_yaml
from prometar.metrics import Interval
from tune.results.goals import SECONDS, Bound, Goal, keeps
from tune.space.spaces import Space

VERSION: Literal[2] = 2
"""Of all files; one more whenever a field is removed, gets another meaning, or is added without a default."""
_MOST_CHARACTERS = 10_000_000  # of study.yaml as plain data: aliases make a large tree of a small file

State = Literal["COMPLETE", "PRUNED", "FAIL"]
Figure = Annotated[float, Field(ge=-1e6, le=1e6)]
"""Percent, or what an objective is measured in."""
Seconds = Annotated[float, Field(ge=0, le=1e10)]


def _setting(value: Any) -> Any:
    if isinstance(value, list | dict) or (isinstance(value, float) and not isfinite(value)):
        raise ValueError("should be a finite number, a text, true, false or null")
    return value


Setting = Annotated[bool | int | float | str | None, PlainValidator(_setting)]
Settings = Mapping[str, Setting]
"""Values by dotted setting."""


@dataclass(frozen=True, kw_only=True)
class Versioned:
    """What a file holds; `File.read` refuses other versions."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)  # of its parts too

    version: Literal[2] = VERSION


@dataclass(frozen=True)
class Run:
    """One training run of a trial, of the last round or of the final test.

    Args:
        base, new, objective: Percent; None where it was not scored, and all of them where it has failed.
        seconds: Of training.
        failed: Why it has no figures; "" where it has.
        alignment: Mean cosine of its gradients, where that was measured.
        cpus, gpus: Held while it ran; None in a trial, and where its result does not say.
    """

    dataset: str
    seed: int
    base: Figure | None = None
    new: Figure | None = None
    objective: Figure | None = None
    seconds: Seconds | None = None
    failed: str = ""
    alignment: float | None = None
    cpus: Seconds | None = None
    gpus: Seconds | None = None

    @property
    def done(self) -> bool:
        """Whether it has figures."""
        return self.objective is not None


def _once(key: Callable[[Any], object]) -> AfterValidator:
    def check(found: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(map(key, found))) < len(found):
            raise ValueError("one stands there twice")
        return found

    return AfterValidator(check)


Runs = Annotated[tuple[Run, ...], _once(lambda run: (run.dataset, run.seed))]


@dataclass(frozen=True)
class Epoch:
    """What a trial reported after an epoch (from 1 on)."""

    epoch: NonNegativeInt
    objective: Figure


@dataclass(frozen=True)
class TrialRecord(Versioned):
    """trials/NNNN/record.json: a trial of the search that has ended.

    Args:
        reference: Whether its settings are the released ones. origin: Where its settings come from.
        given: The settings that it was enqueued with, the others were drawn.
        objective, base, new: Percent in its last epoch, the mean over its runs.
        epoch: The last one. epochs: The objective by epoch.
        seconds: Of training, all runs together. cpus, gpus: Held while it ran.
        notes: What a user should know of it. reason: Why it failed.
    """

    number: NonNegativeInt
    state: State
    reference: bool
    origin: str
    settings: Settings
    given: Settings
    objective: Figure | None
    base: Figure | None
    new: Figure | None
    epoch: NonNegativeInt
    epochs: tuple[Epoch, ...]
    runs: Runs
    seconds: Seconds
    cpus: Seconds
    gpus: Seconds
    notes: tuple[str, ...]
    reason: str
    started: NaiveDatetime | None
    ended: NaiveDatetime | None
    loss: float | None = None

    @property
    def score(self) -> float | None:
        """The objective of a finished trial; None for others."""
        return self.objective if self.state == "COMPLETE" else None

    @property
    def tested_as(self) -> int:
        """Its number in the final test: 0 for the released settings, also where they were run again."""
        return 0 if self.reference else self.number

    def goal(self, name: Goal) -> float | None:
        """One of the figures that a search can optimise or bound."""
        figure: float | None = getattr(self, name)
        return figure

    def in_time(self, bounds: Iterable[Bound]) -> bool:
        """Whether it took no longer than they say: all that no later run of its settings can tell."""
        return keeps((bound for bound in bounds if bound.figure == SECONDS), self.goal)


def by_score(trials: Iterable[TrialRecord], bounds: Sequence[Bound] = ()) -> list[TrialRecord]:
    """The finished trials that keep the bounds, highest objective first; of equals the earlier first."""
    scored = [(-t.score, t.number, t) for t in trials if t.score is not None and keeps(bounds, t.goal)]
    return [t for _, _, t in sorted(scored, key=lambda each: each[:2])]


@dataclass(frozen=True)
class Reevaluated:
    """Settings that were run again.

    Args:
        search: What the search measured. mean: Over all fresh runs.
        expected: The gain on the test, in points of H, that its lead over the released settings stands for.
        probability: That the gain is above 0. Both None where a lead's worth is not known.
    """

    number: NonNegativeInt
    reference: bool
    settings: Settings
    search: Figure | None
    mean: Figure | None
    runs: Runs
    expected: Figure | None = None
    probability: float | None = None

    def keeps(self, bounds: Iterable[Bound]) -> bool:
        """Whether its means over the fresh runs keep them; its time was judged in the search."""

        def mean_of(name: Goal) -> float | None:
            figures = [getattr(run, name) for run in self.runs]
            return None if None in figures or not figures else sum(figures) / len(figures)

        return keeps((bound for bound in bounds if bound.figure != SECONDS), mean_of)

    @property
    def by_seed(self) -> dict[int, list[float]]:
        """Objectives of its finished runs by seed, in the order of the seeds."""
        found: dict[int, list[float]] = {}
        for run in sorted(self.runs, key=lambda run: run.seed):
            if run.objective is not None:
                found.setdefault(run.seed, []).append(run.objective)
        return found


@dataclass(frozen=True)
class Reevaluation(Versioned):
    """lastround.json: the leading settings with fresh seeds, and the number of those that are chosen.

    Args:
        keep_unless: The probability of being better from which on settings replace the released ones; None
            where the highest mean is chosen.
        among: Finished trials that its rows were taken from.
    """

    seeds: tuple[int, ...]
    chosen: int | None
    rows: Annotated[tuple[Reevaluated, ...], _once(lambda row: row.number)]
    among: NonNegativeInt
    keep_unless: float | None = None

    @property
    def judged(self) -> bool:
        """Whether what leads are worth decided, and not the highest mean."""
        return self.keep_unless is not None


@dataclass(frozen=True)
class EarlierTrial:
    """A finished trial of another study; `score`: its objective."""

    settings: Settings
    score: Figure


@dataclass(frozen=True)
class EarlierStudy:
    """What another study has measured.

    Args:
        folder: Where it lay. trials: Without the released settings, which no draw of a space is like.
        released: What those scored; None where they have not finished.
    """

    folder: str
    datasets: tuple[str, ...]
    objective: str
    trials: Annotated[tuple[EarlierTrial, ...], Field(min_length=1)]
    released: Figure | None = None

    @property
    def settings(self) -> list[Settings]:
        return [trial.settings for trial in self.trials]

    @property
    def scores(self) -> list[float]:
        return [trial.score for trial in self.trials]


@dataclass(frozen=True)
class Learned(Versioned):
    """learned.json: what other studies had measured when this one began, and what it starts with for that."""

    studies: Annotated[tuple[EarlierStudy, ...], Field(min_length=1)]
    starts: tuple[Settings, ...] = ()

    def scored_by(self, objective: str, *, besides: Collection[str]) -> list[EarlierStudy]:
        """The studies of one objective, on none of the data sets `besides`."""
        return [
            study
            for study in self.studies
            if study.objective == objective and set(besides).isdisjoint(study.datasets)
        ]

    def __str__(self) -> str:
        names = ", ".join(" and ".join(study.datasets) for study in self.studies)
        number = sum(len(study.trials) + (study.released is not None) for study in self.studies)
        return f"{number} trials on {names}"


@dataclass(frozen=True)
class Tested:
    """Settings of the final test: the number of their trial, 0 for the released ones."""

    number: NonNegativeInt
    settings: Settings


@dataclass(frozen=True)
class DatasetTest:
    """One data set's final runs.

    Args:
        best, released: Runs by seed. difference: best - released in H, paired by seed.
        shown: Whether a difference is. published: The published H of the method, if there is one.
    """

    best: Runs
    released: Runs
    difference: Interval | None
    shown: bool
    published: Figure | None = None


@dataclass(frozen=True)
class FinalTest(Versioned):
    """finals.json: chosen and released settings on the test images.

    Args:
        same: Whether the chosen settings are the released ones, so that all runs are both sides.
        difference: The one data set's; over several, the interval of their mean differences.
        tested: Numbers of all trials whose settings have ever been tested, 0 for the released ones.
        alpha: How often a data set's interval may be wrong, at its last look alone.
        alpha_over_sets: How often that over several data sets may be; None where it is as often.
        looks: Trial and pairs of the tests before this one, of other trials or with other seeds.
        matters: The smallest difference that matters, where pairs were added until it was decided.
        excluded: Whether a difference that matters is excluded.
        detectable: The smallest true difference that would have been shown in four of five such tests.
    """

    seeds: tuple[int, ...]
    same: bool
    best: Tested
    released: Tested
    datasets: Mapping[str, DatasetTest]
    difference: Interval | None
    shown: bool
    tested: tuple[int, ...] = ()
    alpha: float = 0.05
    alpha_over_sets: float | None = None
    looks: tuple[tuple[int, int], ...] = ()
    matters: Figure | None = None
    excluded: bool = False
    detectable: Figure | None = None

    @property
    def level(self) -> str:
        """How often a data set's interval holds the true difference at one look, in percent."""
        return f"{100 * (1 - self.alpha):g}"

    @property
    def overall_level(self) -> str:
        """How often that of `difference` does."""
        return self.level if self.alpha_over_sets is None else f"{100 * (1 - self.alpha_over_sets):g}"

    @property
    def looked_before(self) -> tuple[int, ...]:
        """Pairs after which the same settings were compared before."""
        return tuple(pairs for number, pairs in self.looks if number == self.best.number)

    def sides(self, dataset: str) -> dict[str, tuple[Run, ...]]:
        """A data set's runs by side; those that are both sides count once."""
        found = self.datasets[dataset]
        return {"released": found.released} | ({} if self.same else {"best": found.best})


@dataclass(frozen=True)
class AskedFor:
    """What a study was asked for.

    Args:
        leaks: Whether the objective reads the test images. score: What the objective is called.
        seeds: Of every trial. top_seeds: Fresh ones of the last round.
        max_hours: Of searching, as the last command allowed; None for no end.
        bounds: What settings must keep to be chosen.
    """

    datasets: Annotated[tuple[str, ...], Field(min_length=1)]
    data_root: str | None
    backbone: str
    pretrained: str | None
    method: str
    objective: str
    leaks: bool
    score: str
    goals: Annotated[tuple[Goal, ...], Field(min_length=1)]
    trials: int
    max_hours: float | None
    epochs: int
    shots: int
    seed: int
    seeds: tuple[int, ...]
    sampler: str
    pruner: str
    val_per_class: int
    top: int
    top_seeds: tuple[int, ...]
    final_seeds: tuple[int, ...]
    matters: float | None = None
    bounds: tuple[Bound, ...] = ()


@dataclass(frozen=True)
class StudyRecord(Versioned):
    """study.yaml.

    Args:
        key: A random name, no other study's: its files at a URL are told from theirs by it.
        command: That ran it last.
        identity: What must not change while the study goes on.
        config: The released settings, complete.
        environment: Versions and machine of the last command; `earlier_environments` of those before it
            that differ.
        forgiven: Failed trials that count for nothing. seconds_searched: In the commands before the last one.
    """

    name: str
    key: str
    command: str
    asked: AskedFor
    space: Space
    identity: Mapping[str, JsonValue]
    config: Mapping[str, JsonValue]
    environment: Mapping[str, str]
    earlier_environments: tuple[Mapping[str, str], ...] = ()
    forgiven: tuple[int, ...] = ()
    seconds_searched: float = 0.0


T = TypeVar("T", bound=Versioned)


class File(Generic[T]):
    """A kind of file of a study: how it is read and written.

    Args:
        kind: The record that it holds. mend: What a user can do when it is damaged.
    """

    def __init__(self, kind: Any, mend: str) -> None:
        self._adapter = TypeAdapter[T](kind)
        self._mend = mend

    def read(self, path: Path) -> T:
        """
        Raises:
            UserError: the file cannot be read, is damaged (the field is named), or is of another version.
        """
        try:
            text = read_bytes(path).decode() if path.suffix == ".json" else _as_json(read_yaml(path))
            _require_version(json.loads(text), path)
            return self._adapter.validate_json(text)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field, problem = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
            raise UserError(f"{path} is damaged, {field or 'as a whole'}: {problem}; {self._mend}") from None
        except (TypeError, ValueError, RecursionError):  # no JSON, nested too deep, YAML with dates
            raise UserError(f"{path} is damaged: {self._mend}") from None

    def find(self, path: Path) -> T | None:
        """What `read` returns; None where there is no such file."""
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:  # `read` says why
            pass
        return self.read(path)

    def plain(self, record: T) -> Any:
        """The record as plain data, as its file holds it."""
        return self._adapter.dump_python(record, mode="json")

    def write(self, path: Path, record: T) -> None:
        """
        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        if path.suffix == ".json":
            content = self._adapter.dump_json(record, indent=1)
        else:
            content = yaml.safe_dump(self.plain(record), sort_keys=False).encode()
        write_atomically(path, content)


def _of_its_rows(found: Reevaluation) -> Reevaluation:
    if found.chosen is not None and found.rows and found.chosen not in {row.number for row in found.rows}:
        raise ValueError(f"trial {found.chosen} is chosen, and not among its rows")
    return found


_AGAIN = "remove it, and run search.py again"
STUDY = File[StudyRecord](StudyRecord, "restore it, or start another study")
TRIAL = File[TrialRecord](TrialRecord, _AGAIN)
REEVALUATION = File[Reevaluation](Annotated[Reevaluation, AfterValidator(_of_its_rows)], _AGAIN)
FINAL_TEST = File[FinalTest](FinalTest, _AGAIN)
LEARNED = File[Learned](Learned, "restore it, or start another study")


def _as_json(tree: Any) -> str:
    """Plain data as JSON, which is checked as the other files are."""
    chunks, length = [], 0
    for chunk in json.JSONEncoder().iterencode(tree):
        chunks.append(chunk)
        length += len(chunk)
        if length > _MOST_CHARACTERS:
            raise ValueError("too large")
    return "".join(chunks)


def _require_version(tree: Any, path: Path) -> None:
    if not isinstance(tree, dict):
        raise ValueError("no record")
    found = tree.get("version")
    if found != VERSION:
        has = "has no version" if found is None else f"is of version {str(found)[:20]}"
        raise UserError(f"{path} {has}, and this prometar reads version {VERSION}: use the one that wrote it")
