"""What a study's runs cost: how many, how long, and what they held."""

from collections.abc import Sequence
from dataclasses import dataclass

from tune.results.reader import STATES, Records
from tune.results.schema import Run, TrialRecord


@dataclass(frozen=True)
class Cost:
    """Runs of one kind: how many, training seconds, CPU and GPU hours (None where not recorded)."""

    name: str
    count: int
    seconds: float
    cpu_hours: float | None
    gpu_hours: float | None


def costs(records: Records) -> list[Cost]:
    """What each kind of run cost, those of the search by how they ended; the last row is the sum."""
    rows = [_searched(title, records.in_state(state)) for state, title in STATES.items()]
    again = [run for row in records.lastround.rows for run in row.runs] if records.lastround else []
    tested = [run for side in records.sides.values() for run in side]
    rows += [_later("last round", again), _later("final test", tested)]
    rows = [row for row in rows if row.count]
    return [*rows, _sum(rows)]


def span(records: Records) -> float | None:
    """Seconds from the search's first start to its last end, pauses included."""
    moments = [moment for t in records.trials for moment in (t.started, t.ended) if moment]
    return (max(moments) - min(moments)).total_seconds() if moments else None


def _searched(title: str, trials: Sequence[TrialRecord]) -> Cost:
    return Cost(
        f"search, {title}",
        len(trials),
        sum(t.seconds for t in trials),
        sum(t.seconds * t.cpus for t in trials) / 3600,
        sum(t.seconds * t.gpus for t in trials) / 3600,
    )


def _later(name: str, runs: Sequence[Run]) -> Cost:
    timed = [(run.seconds, run.cpus, run.gpus) for run in runs if run.seconds is not None]
    return Cost(
        name,
        len(runs),
        sum(seconds for seconds, _, _ in timed),
        _all_of([None if cpus is None else seconds * cpus / 3600 for seconds, cpus, _ in timed]),
        _all_of([None if gpus is None else seconds * gpus / 3600 for seconds, _, gpus in timed]),
    )


def _sum(rows: Sequence[Cost]) -> Cost:
    return Cost(
        "all",
        sum(row.count for row in rows),
        sum(row.seconds for row in rows),
        _all_of([row.cpu_hours for row in rows]),
        _all_of([row.gpu_hours for row in rows]),
    )


def _all_of(values: Sequence[float | None]) -> float | None:
    """None where one of them is unknown: part of a sum would look like all of it."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
