"""What a study says in the terminal at its end: the page's own rows and sentences, the short way."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tune.reporting.statements import advice, caveats, expectation, verdict
from tune.reporting.tables import summary_tables
from tune.results.reader import STATES, Records


def print_summary(console: Console, records: Records, folder: Path, report: Path) -> None:
    """All comparisons, what they do not show, and where the files are."""
    counts = [f"{len(records.in_state(state))} {title}" for state, title in STATES.items()]
    console.print(f"\nsearch: {', '.join(counts)} trials")
    for table in summary_tables(records):
        print_table(console, table.title, table.columns, table.rows)
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
