"""Folder of a study: file locations, records and what they tell together."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from prometar.config.settings import Config, dump_config
from prometar.data.datasets.catalog import file_name
from prometar.data.splits.objective import objective_of
from prometar.environment import environment
from prometar.errors import UserError
from prometar.io.files import resolved, write_atomically
from prometar.io.stores import masked
from tune.config import SearchConfig, StudyConfig
from tune.records.schema import (
    Confirmation,
    FinalTest,
    Record,
    RunScore,
    State,
    StudyRecord,
    TrialRecord,
    by_score,
    read_record,
    write_record,
)

STATES: dict[State, str] = {"COMPLETE": "completed", "PRUNED": "pruned", "FAIL": "failed"}
_FILES: dict[type, str] = {
    StudyRecord: "study.yaml",
    Confirmation: "confirmation.json",
    FinalTest: "finals.json",
}


class StudyFolder:
    """OUT/STUDY: study.yaml, study.db, trials/, confirmation/, finals/, best.yaml, report.html."""

    def __init__(self, path: Path) -> None:
        self.path = resolved(path)

    @classmethod
    def of(cls, config: StudyConfig) -> Self:
        """Folder of a study with this configuration."""
        return cls(config.location.out / config.name)

    def trial(self, number: int) -> Path:
        """Folder of a trial."""
        return self.path / "trials" / f"{number:04d}"

    def confirmation(self, number: int, seed: int) -> Path:
        """Folder of a confirmation run of trial `number`'s settings."""
        return self.path / "confirmation" / f"trial-{number:04d}-seed{seed}"

    def final(self, number: int, dataset: str, seed: int) -> Path:
        """Folder of a final-test run of trial `number`'s settings, 0 for the default settings."""
        return self.path / "finals" / f"trial-{number:04d}-{file_name(dataset)}-seed{seed}"

    def write(self, record: Record) -> None:
        """Write a record."""
        if isinstance(record, TrialRecord):
            write_record(self.trial(record.number) / "record.json", record)
        else:
            write_record(self.path / _FILES[type(record)], record)

    def write_study(self, config: StudyConfig, contents: Mapping[str, str]) -> None:
        """Write study.yaml. Environments of earlier commands are kept if they differ."""
        objective, now, before = objective_of(config.search.objective), environment(), self.read(StudyRecord)
        earlier = (*before.earlier_environments, before.environment) if before else ()
        self.write(
            StudyRecord(
                config=config,
                score=objective.title,
                leaks=objective.leaks,
                contents=contents,
                command=masked(_command(sys.argv)),
                environment=now,
                earlier_environments=tuple(each for each in earlier if each != now),
            )
        )

    def write_best(self, config: Config) -> None:
        """Write best.yaml, the complete configuration of the selected settings."""
        write_atomically(self.path / "best.yaml", dump_config(config).encode())

    def read(self, kind: type[Record]) -> Record | None:
        """Return the record of a kind that a study has one of, or None if its file does not exist."""
        return read_record(self.path / _FILES[kind], kind)

    def read_trials(self) -> tuple[TrialRecord, ...]:
        """Records of the finished trials, by number.

        Raises:
            UserError: a record is corrupt, or lies in the folder of another trial.
        """
        found, trials = [], self.path / "trials"
        for folder in sorted(trials.iterdir()) if trials.is_dir() else ():
            trial = read_record(path := folder / "record.json", TrialRecord)
            if trial is None:
                continue
            if folder != self.trial(trial.number):
                raise UserError(f"{path} is the record of trial {trial.number}. Move it out of the study.")
            found.append(trial)
        return tuple(sorted(found, key=lambda trial: trial.number))


@dataclass(frozen=True)
class Records:
    """Records of a study. A study that has not finished lacks the later ones."""

    folder: Path
    study: StudyRecord
    trials: tuple[TrialRecord, ...]
    confirmation: Confirmation | None
    final_test: FinalTest | None

    @property
    def config(self) -> StudyConfig:
        """Configuration of the study."""
        return self.study.config

    @property
    def search(self) -> SearchConfig:
        """Configuration of the search."""
        return self.config.search

    @cached_property
    def run(self) -> dict[str, Any]:
        """Default settings by dotted key."""
        return self.config.run.flat()

    def in_state(self, state: State) -> list[TrialRecord]:
        """Trials that finished in this state."""
        return [trial for trial in self.trials if trial.state == state]

    @cached_property
    def completed(self) -> list[TrialRecord]:
        """Completed trials, highest objective first."""
        return by_score(self.trials)

    @cached_property
    def baseline(self) -> TrialRecord | None:
        """Trial of the default settings. If it was rerun after a failure, the completed one."""
        return next((trial for trial in (*self.completed, *self.trials) if trial.baseline), None)

    @cached_property
    def selected(self) -> TrialRecord | None:
        """Trial that the confirmation selected. Without a confirmation, the best one of the search."""
        number = self.confirmation.selected if self.confirmation else None
        best = self.completed[0] if self.completed else None
        return next((trial for trial in self.trials if trial.number == number), best)

    @property
    def outdated(self) -> bool:
        """True if the final test compared settings that are no longer selected."""
        if self.final_test is None or self.selected is None:
            return False
        tested = self.final_test.selected
        return tested.number != self.selected.number and not (tested.baseline and self.selected.baseline)


def read_records(folder: Path) -> Records:
    """Read all records of a study.

    Raises:
        UserError: the folder does not contain a study, or a record is corrupt or has another version.
    """
    source = StudyFolder(folder)
    study = source.read(StudyRecord)
    if study is None:
        raise UserError(f"{folder} does not contain a study. Pass a folder OUT/STUDY of tune/search.py.")
    trials = source.read_trials()
    return Records(source.path, study, trials, source.read(Confirmation), source.read(FinalTest))


def paired(
    ours: Sequence[RunScore], theirs: Sequence[RunScore], figure: str = "objective"
) -> dict[int, float]:
    """Differences of a figure by seed, for seeds that have it on both sides."""
    other = {run.seed: getattr(run, figure) for run in theirs}
    pairs = {run.seed: (getattr(run, figure), other.get(run.seed)) for run in ours}
    return {seed: a - b for seed, (a, b) in pairs.items() if a is not None and b is not None}


def _command(words: Sequence[str]) -> str:
    """This process's command line as a user types it.

    Example:
        >>> _command(["/opt/bin/prometar", "search", "--seed", "3"]), _command(["tune/search.py"])
        ('prometar search --seed 3', 'python tune/search.py')
    """
    path = Path(words[0])
    if path.name == "__main__.py":
        return shlex.join(["python", "-m", path.parent.name, *words[1:]])
    if path.is_absolute() and not path.suffix:
        return shlex.join([path.name, *words[1:]])
    return shlex.join(["python", *words])
