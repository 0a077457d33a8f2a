"""What a study's records say, as rows of tables, and as three small tables for terminal and notebook."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

from prometar.metrics import Interval
from tune.reporting.formatting import NONE, bounds, chance, listed, number, range_of, signed, spread
from tune.results.reader import Records
from tune.results.schema import Reevaluated, Run, Setting


@dataclass(frozen=True)
class SettingRow:
    """A searched setting: its range, and its released and its best value."""

    key: str
    range: str
    released: Setting
    best: Setting
    changed: bool


@dataclass(frozen=True)
class FinalRow:
    """One data set and side of the final test; the difference stands beside the best's."""

    dataset: str
    side: str
    base: str
    new: str
    objective: str
    runs: str
    difference: Interval | None = None


@dataclass(frozen=True)
class RoundRow:
    """Settings of the last round; `flattery` is how far the fresh figure is from the search's."""

    of: Reevaluated
    chosen: bool
    spread: str
    finished: str
    flattery: float | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class SummaryTable:
    """Texts; the first column holds names."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def settings_rows(records: Records) -> list[SettingRow]:
    """A row a searched setting, those that the study changes first."""
    released = records.released.settings if records.released else {}
    best = records.chosen.settings if records.chosen else {}
    rows = [
        SettingRow(
            key,
            range_of(entry),
            released.get(key),
            best.get(key),
            changed=bool(best and released) and best.get(key) != released.get(key),
        )
        for key, entry in records.ranges.items()
    ]
    return sorted(rows, key=lambda row: not row.changed)


def final_rows(records: Records) -> list[FinalRow]:
    """A row a data set and side of the final test, and the published figures."""
    rows: list[FinalRow] = []
    for name, entry in records.tests.items():
        assert records.finals is not None
        for side, runs in records.finals.sides(name).items():
            done = [run for run in runs if run.done]
            base, new, objective = (figures_of(done, figure) for figure in ("base", "new", "objective"))
            difference = entry.difference if side == "best" else None
            rows.append(FinalRow(name, side, base, new, objective, f"{len(done)} of {len(runs)}", difference))
        if entry.published is not None:
            cited = number(entry.published)
            rows.append(FinalRow(name, "published, cited", NONE, NONE, cited, NONE))
    return rows


def round_rows(records: Records) -> list[RoundRow]:
    """The last round's rows, the highest mean first."""
    if records.lastround is None:
        return []
    found = [
        RoundRow(
            row,
            chosen=row.number == records.lastround.chosen,
            spread=_over_seeds(row),
            finished=f"{sum(run.done for run in row.runs)} of {len(row.runs)}",
            flattery=None if row.search is None or row.mean is None else row.mean - row.search,
            reasons=tuple(run.failed for run in row.runs if run.failed),
        )
        for row in records.lastround.rows
    ]
    return sorted(found, key=lambda row: -row.of.mean if row.of.mean is not None else 1.0)


def _over_seeds(row: Reevaluated) -> str:
    """The mean, with the standard deviation over seeds of their means over data sets."""
    found = row.by_seed.values()
    most = max(map(len, found), default=0)  # a seed with a failed run has another mean
    means = [mean(values) for values in found if len(values) == most]
    spread_ = f" ± {stdev(means):.2f}" if len(means) > 1 else ""
    return number(row.mean) + spread_ if row.mean is not None else spread(means)


def figures_of(runs: Iterable[Run], figure: Literal["base", "new", "objective"] = "objective") -> str:
    """Mean and standard deviation of one figure of the runs, H by default."""
    values = (getattr(run, figure) for run in runs)
    return spread([value for value in values if value is not None])


def summary_tables(records: Records) -> list[SummaryTable]:
    """Search, last round and final test; those without rows are left out."""
    found = (_search(records), _last_round(records), _final_test(records))
    return [table for table in found if table and table.rows]


def _search(records: Records) -> SummaryTable:
    images = "the test images" if records.leaking else "the search's own images (validation, base classes)"
    best, released = records.best, records.released
    leads = best is not None and best.reference
    rows = list[tuple[str, str]]()
    if released and released.score is not None:
        rows.append(("released, the best" if leads else "released", number(released.score)))
    if best is not None and not leads:
        rows.append((f"best (trial {best.number})", number(best.score)))
    return SummaryTable(f"search, on {images}", ("settings", records.score), tuple(rows))


def _last_round(records: Records) -> SummaryTable | None:
    if records.lastround is None:
        return None
    judged = records.lastround.judged
    rows = tuple(
        (
            ("released" if row.of.reference else f"trial {row.of.number}")
            + (" (chosen)" if row.chosen else ""),
            number(row.of.search),
            row.spread if row.of.mean is not None else "failed",
            signed(row.flattery),
            *((signed(row.of.expected), chance(row.of.probability)) if judged else ()),
        )
        for row in round_rows(records)
    )
    title = f"last round, the same images with fresh seeds {listed(records.lastround.seeds)}"
    columns = ("settings", "search", f"{records.score}, fresh", "fresh − search")
    return SummaryTable(title, columns + (("expected gain", "P(better)") if judged else ()), rows)


def _final_test(records: Records) -> SummaryTable | None:
    finals = records.finals
    if finals is None or not finals.seeds:
        return None
    rows = tuple(
        (
            f"{row.side}, {row.dataset}" if records.several else row.side,
            row.base,
            row.new,
            row.objective,
            row.runs,
            bounds(row.difference),
        )
        for row in final_rows(records)
    )
    seeds = ", ".join(map(str, finals.seeds))
    title = f"on the test images, trained on all base classes, seeds {seeds}"
    columns = ("settings", "base", "new", "H", "runs", f"best − released ({finals.level} % interval)")
    return SummaryTable(title, columns, rows)
