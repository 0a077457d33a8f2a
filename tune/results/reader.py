"""What a study's folder says, read once: study.yaml, trials/NNNN/record.json, lastround.json, finals.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

from prometar.errors import UserError
from tune.results.writer import read_study

STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
SECONDS = "seconds"  # the one goal that is minimised

_NEEDED = {
    "record": {"number", "state", "reference", "settings", "objective", "base", "new", "epoch", "epochs",
               "seconds", "started", "ended"},
    "lastround": {"chosen", "rows"},
    "finals": {"same"},
}  # fmt: skip
# What records of earlier versions lack. A trial's origin is then told by its reference mark.
_TRIAL = {"runs": (), "notes": (), "cpus": None, "gpus": None, "enqueued": False, "origin": None}

Run = Mapping[str, Any]  # {"seed", "base", "new", "objective", "seconds"} or {"seed", "failed"}


@dataclass(frozen=True)
class Records:
    """A study as its files tell it; `read_records` fills in what files of earlier versions lack."""

    folder: str
    study: dict[str, Any]
    trials: tuple[dict[str, Any], ...]
    lastround: dict[str, Any] | None
    finals: dict[str, Any] | None

    @property
    def asked(self) -> dict[str, Any]:
        return self.study["asked"]

    @property
    def ranges(self) -> dict[str, dict[str, Any]]:
        return self.study["space"]["ranges"]

    @property
    def leaking(self) -> bool:
        """Whether the search read the test images."""
        return self.asked["objective"] == "oracle_test"

    @property
    def score(self) -> str:
        """What the objective is called; where it leaks, its name says so wherever it stands."""
        return self.titled("base accuracy" if self.asked["objective"] == "base_val" else "H")

    def titled(self, figure: str) -> str:
        """A figure of the search as plots and tables name it: stamped where the search leaks."""
        return f"leaking {figure}" if self.leaking else figure

    def goal_title(self, goal: str) -> str:
        """What is optimised, with its unit."""
        if goal == SECONDS:
            return "seconds of training"
        return f"{self.score if goal == 'objective' else self.titled(f'{goal} classes')} (%)"

    @cached_property
    def complete(self) -> list[dict[str, Any]]:
        return [t for t in self.trials if t["state"] == "COMPLETE" and t["objective"] is not None]

    @cached_property
    def best(self) -> dict[str, Any] | None:
        """The finished trial with the highest objective; the earliest of equals."""
        return max(self.complete, key=lambda t: (t["objective"], -t["number"]), default=None)

    @cached_property
    def released(self) -> dict[str, Any] | None:
        return next((t for t in self.trials if t["reference"]), None)

    @cached_property
    def chosen(self) -> dict[str, Any] | None:
        """The trial whose settings the study ends with: the last round's choice, or the search's best."""
        number = (self.lastround or {}).get("chosen")
        return next((t for t in self.trials if t["number"] == number), self.best)

    @property
    def sides(self) -> dict[str, list[dict[str, Any]]]:
        """All final runs of the released settings and of the best; runs that are both count once."""
        names = ["released"] if self.finals and self.finals["same"] else ["released", "best"]
        datasets = self.finals["datasets"].values() if self.finals else ()
        return {name: [run for entry in datasets for run in entry[name]] for name in names}


def read_records(study_dir: Path) -> Records:
    """
    Raises:
        UserError: the folder holds no study, or a damaged record.
    """
    study = read_study(study_dir)
    try:
        asked = study["asked"]
        asked.setdefault("datasets", [asked["dataset"]])
        asked.setdefault("seeds", [asked["seed"]])
        asked.setdefault("goals", ["objective"])
        study["space"].setdefault("ranges", {})
    except (AttributeError, KeyError, TypeError):
        raise UserError(
            f"{study_dir / 'study.yaml'} is damaged: restore it, or start another study"
        ) from None
    trials = read_trials(study_dir)
    finals, lastround = (_optional(study_dir / f"{name}.json") for name in ("finals", "lastround"))
    return Records(
        study_dir.resolve().name,
        study,
        trials,
        lastround if lastround and lastround["rows"] else None,  # none was asked for
        finals and _by_dataset(finals, study["asked"]["dataset"]),
    )


def read_trials(study_dir: Path) -> tuple[dict[str, Any], ...]:
    """The records of a study's trials that have ended, by number.

    Raises:
        UserError: a record is damaged.
    """
    trials = [_trial(path) for path in study_dir.glob("trials/*/record.json")]
    return tuple(sorted(trials, key=lambda t: t["number"]))


def finished(runs: Iterable[Run]) -> list[Run]:
    """The runs that have figures."""
    return [run for run in runs if run.get("objective") is not None]


def paired(ours: Iterable[Run], theirs: Iterable[Run]) -> dict[int, float]:
    """Differences of the objective by seed, where both finished."""
    other = {run["seed"]: run["objective"] for run in finished(theirs)}
    return {
        run["seed"]: run["objective"] - other[run["seed"]] for run in finished(ours) if run["seed"] in other
    }


def dataset_means(trial: Mapping[str, Any]) -> dict[str, float]:
    """A trial's objective by data set, over its seeds and folds."""
    groups: dict[str, list[float]] = {}
    for run in finished(trial["runs"]):
        groups.setdefault(run["dataset"], []).append(run["objective"])
    return {name: mean(values) for name, values in groups.items()}


def ranking(trials: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Finished trials by objective, then those that got farthest."""
    order = list(STATES)
    return sorted(
        trials,
        key=lambda t: (
            order.index(t["state"]) if t["state"] in order else len(order),
            -t["epoch"] if t["state"] != "COMPLETE" else 0,
            -t["objective"] if t["objective"] is not None else 0.0,
            t["number"],
        ),
    )


def pareto(trials: Iterable[Mapping[str, Any]], goals: Sequence[str]) -> list[Mapping[str, Any]]:
    """The finished trials that no other one beats in one goal without losing in another, by the first goal.

    Of trials that are equal in every goal, the earliest.
    """
    signs = [1 if goal == SECONDS else -1 for goal in goals]

    def losses(trial: Mapping[str, Any]) -> tuple[float, ...]:
        return tuple(sign * trial[goal] for sign, goal in zip(signs, goals, strict=True))

    points = [t for t in trials if t["state"] == "COMPLETE" and all(t[goal] is not None for goal in goals)]
    front: list[Mapping[str, Any]] = []
    for trial in sorted(points, key=lambda t: (losses(t), t["number"])):
        # In this order nothing later can beat an earlier one.
        mine = losses(trial)
        if not any(all(a <= b for a, b in zip(losses(kept), mine, strict=True)) for kept in front):
            front.append(trial)
    return front


@dataclass(frozen=True)
class Cost:
    """Runs of one kind: how many, training seconds, CPU and GPU hours (None where not recorded)."""

    name: str
    count: int
    seconds: float
    cpu_hours: float | None
    gpu_hours: float | None


def costs(records: Records) -> list[Cost]:
    """What each kind of run cost, those of the search by how they ended; the last row is the sum.

    Runs after the search are counted at the share that their file tells, else at a trial's.
    """
    trial = next((t for t in records.trials if t["cpus"]), {"cpus": None, "gpus": None})
    rows = [
        _cost(f"search, {title}", [t for t in records.trials if t["state"] == state], {})
        for state, title in STATES.items()
    ]
    again = [run for row in (records.lastround or {"rows": ()})["rows"] for run in row["runs"]]
    rows.append(_cost("last round", again, trial | (records.lastround or {})))
    tested = [run for side in records.sides.values() for run in side]
    rows.append(_cost("final test", tested, trial | (records.finals or {})))
    rows = [row for row in rows if row.count]
    total = Cost(
        "all",
        sum(row.count for row in rows),
        sum(row.seconds for row in rows),
        _sum([row.cpu_hours for row in rows]),
        _sum([row.gpu_hours for row in rows]),
    )
    return [*rows, total]


def span(records: Records) -> float | None:
    """Seconds from the search's first start to its last end, pauses included."""
    moments = [
        datetime.fromisoformat(t[key]) for t in records.trials for key in ("started", "ended") if t[key]
    ]
    return (max(moments) - min(moments)).total_seconds() if moments else None


def _cost(name: str, runs: Sequence[Mapping[str, Any]], held: Mapping[str, Any]) -> Cost:
    def held_hours(key: str) -> float | None:
        shares = [run[key] if run.get(key) is not None else held.get(key) for run in runs]
        return _sum(
            [
                None if share is None else run.get("seconds", 0.0) * share / 3600
                for run, share in zip(runs, shares, strict=True)
            ]
        )

    return Cost(
        name, len(runs), sum(run.get("seconds", 0.0) for run in runs), held_hours("cpus"), held_hours("gpus")
    )


def _sum(values: Sequence[float | None]) -> float | None:
    """None where one of them is unknown: part of a sum would look like all of it."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _trial(path: Path) -> dict[str, Any]:
    trial = _TRIAL | _json(path)
    if not trial["origin"]:
        trial["origin"] = "released" if trial["reference"] else "enqueued" if trial["enqueued"] else "sampled"
    return trial


def _by_dataset(finals: dict[str, Any], dataset: str) -> dict[str, Any]:
    """finals.json of earlier versions is about one data set and keeps its runs beside the settings."""
    if "datasets" in finals:
        return finals
    entry = {name: finals[name]["runs"] for name in ("best", "released")}
    entry |= {key: finals.get(key) for key in ("difference", "shown", "published")}
    return {**finals, "datasets": {dataset: entry}}


def _optional(path: Path) -> dict[str, Any] | None:
    return _json(path) if path.exists() else None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or not content.keys() >= _NEEDED[path.stem]:
        raise UserError(f"the record {path} is damaged: remove it, and run search.py again")
    return content
