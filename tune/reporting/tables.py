"""A study's three comparisons as small tables: the same in the terminal and in a notebook."""

from __future__ import annotations

from dataclasses import dataclass

from tune.reporting.formatting import bounds, chance, listed, number, signed
from tune.reporting.rows import final_rows, round_rows
from tune.results.reader import Records


@dataclass(frozen=True)
class SummaryTable:
    """Texts; the first column holds names."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def summary_tables(records: Records) -> list[SummaryTable]:
    """Search, last round and final test; those without rows are left out."""
    found = (_search(records), _last_round(records), _final_test(records))
    return [table for table in found if table and table.rows]


def _search(records: Records) -> SummaryTable:
    images = "the test images" if records.leaking else "the search's own images (validation, base classes)"
    best, released = records.best, records.released
    rows = [("released", number(released.score))] if released and released.score is not None else []
    if best is not None:
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
