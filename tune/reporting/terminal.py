"""What a study says in the terminal at its end: the page's own rows and sentences, the short way."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tune.reporting.formatting import bounds, listed, number, signed
from tune.reporting.rows import final_rows, round_rows
from tune.reporting.statements import advice, caveats, expectation, verdict
from tune.results.reader import STATES, Records


def print_summary(console: Console, records: Records, folder: Path, report: Path) -> None:
    """All comparisons, what they do not show, and where the files are."""
    counts = [f"{len(records.in_state(state))} {title}" for state, title in STATES.items()][:3]
    console.print(f"\nsearch: {', '.join(counts)} trials")
    _search_table(console, records)
    _round_table(console, records)
    _final_table(console, records)
    for line in filter(None, (verdict(records), expectation(records), advice(records))):
        console.print(line, markup=False)
    for line in caveats(records):
        console.print(f"- {line}", markup=False)
    console.print(
        f"\nbest settings: {folder / 'best.yaml'} (prometar train --config FILE)\nreport: {report}",
        markup=False,
    )


def print_table(console: Console, title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """A table whose first column holds names; nothing where it has no rows."""
    table = Table(title=Text(title), title_justify="left", box=None, min_width=len(title) + 2)
    for place, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if place == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    if table.row_count:
        console.print(table)


def _search_table(console: Console, records: Records) -> None:
    images = "the test images" if records.leaking else "the search's own images (validation, base classes)"
    best, released = records.best, records.released
    rows = [("released", number(released.score))] if released and released.score is not None else []
    if best is not None:
        rows.append((f"best (trial {best.number})", number(best.score)))
    print_table(console, f"search, on {images}", ("settings", records.score), rows)


def _round_table(console: Console, records: Records) -> None:
    if records.lastround is None:
        return
    rows = [
        (
            ("released" if row.of.reference else f"trial {row.of.number}")
            + (" (chosen)" if row.chosen else ""),
            number(row.of.search),
            row.spread if row.of.mean is not None else "failed",
            signed(row.flattery),
        )
        for row in round_rows(records)
    ]
    title = f"last round, the same images with fresh seeds {listed(records.lastround.seeds)}"
    print_table(console, title, ("settings", "search", f"{records.score}, fresh", "fresh − search"), rows)


def _final_table(console: Console, records: Records) -> None:
    finals = records.finals
    if finals is None or not finals.seeds:
        return
    rows = [
        (
            f"{row.side}, {row.dataset}" if records.several else row.side,
            row.base,
            row.new,
            row.objective,
            row.runs,
            bounds(row.difference),
        )
        for row in final_rows(records)
    ]
    seeds = ", ".join(map(str, finals.seeds))
    title = f"on the test images, trained on all base classes, seeds {seeds}"
    columns = ("settings", "base", "new", "H", "runs", "best − released (95 % interval)")
    print_table(console, title, columns, rows)
