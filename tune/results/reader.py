"""What a study's folder says, read once: study.yaml, trials/NNNN/record.json, lastround.json, finals.json."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean

from prometar.errors import UserError
from prometar.io.files import entries
from tune.results.goals import SECONDS, Goal, loss
from tune.results.schema import (
    FINAL_TEST,
    LEARNED,
    REEVALUATION,
    STUDY,
    TRIAL,
    AskedFor,
    DatasetTest,
    FinalTest,
    Learned,
    Reevaluation,
    Run,
    State,
    StudyRecord,
    TrialRecord,
    by_score,
)
from tune.space.spaces import Choice, Range, is_number

STATES: dict[State, str] = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}


@dataclass(frozen=True)
class Records:
    """A study as its files tell it."""

    folder: str
    study: StudyRecord
    trials: tuple[TrialRecord, ...]
    lastround: Reevaluation | None
    finals: FinalTest | None
    learned: Learned | None = None

    @property
    def asked(self) -> AskedFor:
        return self.study.asked

    @property
    def judged(self) -> bool:
        """Whether what leads are worth decided the last round."""
        return self.lastround is not None and self.lastround.judged

    @property
    def ranges(self) -> Mapping[str, Range]:
        return self.study.space.ranges

    @property
    def leaking(self) -> bool:
        """Whether the search read the test images."""
        return self.asked.leaks

    @property
    def several(self) -> bool:
        """Whether the study is about more than one data set."""
        return len(self.asked.datasets) > 1

    @property
    def score(self) -> str:
        """What the objective is called; where it leaks, its name says so wherever it stands."""
        return self.titled(self.asked.score)

    def titled(self, figure: str) -> str:
        """A figure of the search as plots and tables name it: stamped where the search leaks."""
        return f"leaking {figure}" if self.leaking else figure

    def goal_title(self, goal: str) -> str:
        """What is optimised, with its unit."""
        if goal == SECONDS:
            return "seconds of training"
        return f"{self.score if goal == 'objective' else self.titled(f'{goal} classes')} (%)"

    def in_state(self, state: State) -> list[TrialRecord]:
        """The trials that have ended so."""
        return [t for t in self.trials if t.state == state]

    @cached_property
    def complete(self) -> list[TrialRecord]:
        return [t for t in self.trials if t.score is not None]

    @cached_property
    def keeping(self) -> list[TrialRecord]:
        """The finished trials that keep the bounds, the best first."""
        return by_score(self.trials, self.asked.bounds)

    @property
    def best(self) -> TrialRecord | None:
        """The finished trial with the highest objective that keeps the bounds; the earliest of equals."""
        return next(iter(self.keeping), None)

    @cached_property
    def released(self) -> TrialRecord | None:
        """Run again where it has failed: then the one that has finished."""
        return next((t for t in (*self.complete, *self.trials) if t.reference), None)

    @cached_property
    def chosen(self) -> TrialRecord | None:
        """The trial whose settings the study ends with: the last round's choice, or the search's best.

        The released settings, where trials have finished and none keeps the bounds.
        """
        number = self.lastround.chosen if self.lastround else None
        leading = self.best or (self.released if self.complete else None)
        return next((t for t in self.trials if t.number == number), leading)

    @property
    def overtaken(self) -> bool:
        """Whether the final test is of an earlier choice: since then the search has gone on."""
        return bool(self.finals and self.chosen and self.finals.best.number != self.chosen.tested_as)

    @property
    def tests(self) -> Mapping[str, DatasetTest]:
        """The final test by data set; empty where there is none."""
        return self.finals.datasets if self.finals else {}

    @property
    def sides(self) -> dict[str, list[Run]]:
        """All final runs of the released settings and of the best; runs that are both count once."""
        found: dict[str, list[Run]] = {"released": [], "best": []}
        for dataset in self.tests:
            for side, runs in self.finals.sides(dataset).items() if self.finals else ():
                found[side] += runs
        return {side: runs for side, runs in found.items() if runs}


def read_records(study_dir: Path) -> Records:
    """
    Raises:
        UserError: the folder holds no study, a damaged file, or one of another version.
    """
    study, trials = read_study(study_dir), read_trials(study_dir)
    for trial in trials:
        _require_numbers(trial, study.space.ranges, study_dir)
    again = REEVALUATION.find(study_dir / "lastround.json")
    tested = FINAL_TEST.find(study_dir / "finals.json")
    return Records(
        study_dir.resolve().name,
        study,
        trials,
        again if again and again.rows else None,  # none was asked for
        tested,
        LEARNED.find(study_dir / "learned.json"),
    )


def read_study(study_dir: Path) -> StudyRecord:
    """study.yaml of a study's folder.

    Raises:
        UserError: the folder holds no study, or its study.yaml is damaged.
    """
    file = study_dir / "study.yaml"
    if not file.is_file():
        raise UserError(f"{study_dir} holds no study: pass a folder OUT/STUDY that search.py wrote")
    return STUDY.read(file)


def read_trials(study_dir: Path) -> tuple[TrialRecord, ...]:
    """The records of a study's trials that have ended, by number.

    Raises:
        UserError: a record is damaged, cannot be read, or lies in another trial's folder.
    """
    found = []
    for folder in entries(study_dir / "trials"):
        if (trial := TRIAL.find(path := folder / "record.json")) is None:
            continue
        found.append(trial)
        if folder.name != f"{trial.number:04d}":
            raise UserError(
                f"{path} is the record of trial {trial.number}: move it out of the study, or back"
            )
    return tuple(sorted(found, key=lambda t: t.number))


def _require_numbers(trial: TrialRecord, ranges: Mapping[str, Range], study_dir: Path) -> None:
    for key, entry in ranges.items():
        value = trial.settings.get(key, 0)
        if not isinstance(entry, Choice) and not is_number(value):
            raise UserError(
                f"the record of trial {trial.number} in {study_dir} is damaged, settings.{key}: {value!r} is "
                f"no number, and study.yaml has its range as {entry.values()}"
            )


def paired(ours: Iterable[Run], theirs: Iterable[Run]) -> dict[int, float]:
    """Differences of the objective by seed, where both finished."""
    other = {run.seed: run.objective for run in theirs if run.objective is not None}
    return {
        run.seed: run.objective - other[run.seed]
        for run in ours
        if run.objective is not None and run.seed in other
    }


def dataset_means(trial: TrialRecord) -> dict[str, float]:
    """A trial's objective by data set, over its seeds."""
    groups: dict[str, list[float]] = {}
    for run in trial.runs:
        if run.objective is not None:
            groups.setdefault(run.dataset, []).append(run.objective)
    return {name: mean(values) for name, values in groups.items()}


def ranking(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Finished trials by objective, then those that got farthest."""
    order = list(STATES)
    return sorted(
        trials,
        key=lambda t: (
            order.index(t.state),
            -t.epoch if t.state != "COMPLETE" else 0,
            -t.objective if t.objective is not None else 0.0,
            t.number,
        ),
    )


def pareto(trials: Iterable[TrialRecord], goals: Sequence[Goal]) -> list[TrialRecord]:
    """The finished trials that no other one beats in one goal without losing in another, by the first goal.

    Of trials that are equal in every goal, the earliest.
    """
    points: list[tuple[tuple[float, ...], TrialRecord]] = []
    for trial in trials:
        figures = [trial.goal(goal) for goal in goals]
        known = [figure for figure in figures if figure is not None]
        if trial.state == "COMPLETE" and len(known) == len(figures):
            points.append((tuple(map(loss, goals, known)), trial))
    front: list[tuple[tuple[float, ...], TrialRecord]] = []
    for losses, trial in sorted(points, key=lambda point: (point[0], point[1].number)):
        # In this order nothing later can beat an earlier one.
        if not any(all(a <= b for a, b in zip(kept, losses, strict=True)) for kept, _ in front):
            front.append((losses, trial))
    return [trial for _, trial in front]
