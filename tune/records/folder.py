"""Folder of a study: file locations, records, and values derived from several records."""

import secrets
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
from prometar.errors import UserError, one_line
from prometar.io.files import resolve_path, write_atomically
from prometar.io.stores import masked
from tune.config import StudyConfig
from tune.records.schema import (
    ClassSplit,
    Confirmation,
    FinalTest,
    Record,
    SettingsName,
    SingleRecord,
    State,
    StudyRecord,
    TrialRecord,
    rank_completed,
    read_record,
    write_record,
)
from tune.records.timeline import TimelineEntry, read_timeline

STATE_NAMES: dict[State, str] = {"COMPLETE": "completed", "PRUNED": "pruned", "FAIL": "failed"}
"""Name of each state in texts, in the order in which reports list the states."""
SETTINGS_FILES: dict[SettingsName, str] = {"selected": "selected.yaml", "baseline": "default.yaml"}
"""File that contains the selected or the default settings."""
BEST_FILE = "best.yaml"
"""File that contains the settings that the verdict recommends."""
_FILES = {StudyRecord: "study.yaml", Confirmation: "confirmation.json", FinalTest: "finals.json"}
"""File of each record that a study has only once."""


class StudyFolder:
    """File locations and records in the folder of a study, OUT/STUDY. The README lists the files."""

    def __init__(self, path: Path) -> None:
        self.path = resolve_path(path)

    @classmethod
    def of(cls, config: StudyConfig) -> Self:
        """Return the folder of a study with this configuration."""
        return cls(config.location.out / config.name)

    def trial_folder(self, number: int) -> Path:
        """Return the folder of trial `number`."""
        return self.path / "trials" / f"{number:04d}"

    def confirmation_folder(self, number: int, seed: int) -> Path:
        """Return the folder of a confirmation run with the settings of trial `number`."""
        return self.path / "confirmation" / f"trial-{number:04d}-seed{seed}"

    def final_test_folder(self, number: int, dataset: str, seed: int) -> Path:
        """Return the folder of a final-test run with the settings of trial `number` (0: default settings)."""
        return self.path / "finals" / f"trial-{number:04d}-{file_name(dataset)}-seed{seed}"

    def write(self, record: Record) -> None:
        """Write a record to its file in this folder.

        Raises:
            InfrastructureError: the disk is full, or the folder is not writable.
        """
        if isinstance(record, TrialRecord):
            write_record(self.trial_folder(record.number) / "record.json", record)
        else:
            write_record(self.path / _FILES[type(record)], record)

    def write_study(
        self,
        config: StudyConfig,
        input_digests: Mapping[str, str],
        classes: Mapping[str, ClassSplit] | None = None,
        *,
        excluded: Mapping[str, tuple[str, ...]] | None = None,
        exclusion_notes: Sequence[str] = (),
    ) -> None:
        """Write study.yaml, with the current environment and the earlier ones that differ from it.

        Args:
            config: Configuration of the study.
            input_digests: Digests by name of all inputs that affect results, except settings. An example is a
                split.
            classes: Base and new classes by dataset, for the report. Default: unknown.
            excluded: Paths of the excluded images by dataset. Default: none.
            exclusion_notes: Remarks on excluded images. They are added to the remarks of earlier commands.

        Raises:
            UserError: the existing study.yaml is corrupt or has another file format.
            InfrastructureError: the disk is full, or the folder is not writable.
        """
        objective = objective_of(config.search.objective)
        current = environment()
        earlier_environments: list[Mapping[str, str]] = []
        all_notes = list(exclusion_notes)
        previous = self.read(StudyRecord)
        if previous is not None:
            earlier_environments = [*previous.earlier_environments, previous.environment]
            all_notes = [*previous.exclusion_notes, *exclusion_notes]
        distinct_notes = tuple(dict.fromkeys(all_notes))  # in order of first appearance

        record = StudyRecord(
            config=config,
            id=self.study_id,
            score_name=objective.title,
            reads_test_images=objective.search_reads_test_images,
            digests=input_digests,
            command=masked(_command_line(sys.argv)),
            environment=current,
            earlier_environments=tuple(earlier for earlier in earlier_environments if earlier != current),
            classes=classes or {},
            excluded=excluded or {},
            exclusion_notes=distinct_notes,
        )
        self.write(record)

    def write_settings(self, name: str, config: Config, *, comment: str = "") -> None:
        """Write a configuration for `prometar train --config`.

        Args:
            name: Name of the file in this folder.
            config: Complete configuration of a run.
            comment: Comment above the configuration. Default: none.

        Raises:
            InfrastructureError: the disk is full, or the folder is not writable.
        """
        text = f"# {one_line(comment)}\n" if comment else ""
        write_atomically(self.path / name, (text + dump_config(config)).encode())

    @cached_property
    def study_id(self) -> str:
        """Id in study.yaml or, before that file is written, a new random one.

        Raises:
            UserError: study.yaml cannot be read, is corrupt, or has another file format.
        """
        record = self.read(StudyRecord)
        if record is not None and record.id:  # studies of version 0.2.0 have no id
            return record.id
        return secrets.token_hex(16)

    @property
    def has_trials(self) -> bool:
        """True if the folder contains a record of a trial."""
        return any((self.path / "trials").glob("*/record.json"))

    def read(self, kind: type[SingleRecord]) -> SingleRecord | None:
        """Return the study's record of a type, or None if its file does not exist.

        Args:
            kind: Type of which a study has only one record. `read_trials` reads the records of trials.

        Raises:
            UserError: the file cannot be read, is corrupt, or has another file format.
        """
        return read_record(self.path / _FILES[kind], kind)

    def read_all(self) -> "Records | None":
        """Return all records of the study, or None if the folder does not contain a study.

        Raises:
            UserError: a record cannot be read, is corrupt, has another file format, or is in the folder of
                another trial.
        """
        study = self.read(StudyRecord)
        if study is None:
            return None
        return Records(
            folder=self.path,
            study=study,
            trials=self.read_trials(),
            confirmation=self.read(Confirmation),
            final_test=self.read(FinalTest),
            timeline=read_timeline(self.path),
        )

    def read_trials(self) -> tuple[TrialRecord, ...]:
        """Return the records of all trials, in order of number.

        Raises:
            UserError: a record cannot be read, is corrupt, has another file format, or is in the folder of
                another trial.
        """
        trials: list[TrialRecord] = []
        parent = self.path / "trials"
        folders = sorted(parent.iterdir()) if parent.is_dir() else []
        for folder in folders:
            path = folder / "record.json"
            trial = read_record(path, TrialRecord)
            if trial is None:
                continue
            if folder != self.trial_folder(trial.number):
                raise UserError(f"{path} belongs to trial {trial.number}. Move it out of the study.")
            trials.append(trial)
        return tuple(sorted(trials, key=lambda trial: trial.number))


@dataclass(frozen=True)
class Records:
    """All records of a study. `confirmation` and `final_test` are None if that stage has not finished."""

    folder: Path
    study: StudyRecord
    trials: tuple[TrialRecord, ...]
    confirmation: Confirmation | None
    final_test: FinalTest | None
    timeline: tuple[TimelineEntry, ...] = ()

    @property
    def config(self) -> StudyConfig:
        return self.study.config

    @cached_property
    def baseline_config(self) -> dict[str, Any]:
        """Configuration of the baseline, by dotted key. With several datasets, `data.name` is the first."""
        return self.config.baseline.flat()

    @property
    def state_summary(self) -> str:
        """Number of trials in each state, such as "20 completed, 3 pruned, 1 failed"."""
        states = [trial.state for trial in self.trials]
        counts = [f"{states.count(state)} {name}" for state, name in STATE_NAMES.items()]
        return ", ".join(counts)

    @cached_property
    def completed(self) -> list[TrialRecord]:
        """Completed trials, highest objective first."""
        return rank_completed(self.trials)

    @cached_property
    def baseline(self) -> TrialRecord | None:
        """Trial with the default settings, preferably a completed one. None if no such trial has ended.

        There are several such trials if trial 0 fails, because the next command then runs the default
        settings again, as a trial with another number.
        """
        for trial in (*self.completed, *self.trials):
            if trial.is_baseline:
                return trial
        return None

    @cached_property
    def selected(self) -> TrialRecord | None:
        """Trial that the confirmation selected, or else the best completed trial. None if there is none."""
        best = self.completed[0] if self.completed else None
        if self.confirmation is None:
            return best
        by_number = {trial.number: trial for trial in self.trials}
        return by_number.get(self.confirmation.selected_number, best)

    @property
    def current_test(self) -> FinalTest | None:
        """The final test, None if it has not finished or is out of date.

        A final test is out of date if the selected trial or `--final-epochs` has changed.
        """
        test = self.final_test
        if test is None:
            return None
        selected = self.selected
        if selected is None:  # the records of the trials were deleted, so nothing contradicts the test
            return test
        if test.epochs != self.config.test.epochs:
            return None
        is_same_trial = test.selected.number == selected.number
        # Trials with the default settings have equal settings, but different numbers (see `baseline`).
        both_are_baseline = test.selected.is_baseline and selected.is_baseline
        return test if is_same_trial or both_are_baseline else None


def read_records(folder: Path) -> Records:
    """Read all records of a study.

    Raises:
        UserError: the folder does not contain a study, or a record cannot be read, is corrupt, has another
            file format, or is in the folder of another trial.
    """
    records = StudyFolder(folder).read_all()
    if records is None:
        raise UserError(f"{folder} does not contain a study. Pass the folder of a study, such as out/dtd.")
    return records


def _command_line(argv: Sequence[str]) -> str:
    """Return the command that a user types to start a process with these arguments.

    Example:
        >>> _command_line(["/opt/bin/prometar", "train"])
        'prometar train'
        >>> _command_line(["tune/search.py"])
        'python tune/search.py'
    """
    path = Path(argv[0])
    if path.name == "__main__.py":  # python -m prometar
        return shlex.join(["python", "-m", path.parent.name, *argv[1:]])
    if path.is_absolute() and not path.suffix:  # an installed command: the shell found its path
        return shlex.join([path.name, *argv[1:]])
    return shlex.join(["python", *argv])  # a script, such as tune/search.py
