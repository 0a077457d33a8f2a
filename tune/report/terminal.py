"""Summary of a study in the terminal."""

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from tune.records.folder import STATES, Records
from tune.report import statements
from tune.report.tables import Table, summary_tables


def print_summary(console: Console, records: Records) -> None:
    """Print verdict, numbers, caveats and next steps."""

    def say(line: str, style: str = "") -> None:
        console.print(Text(line, style), soft_wrap=False)

    say(f"\n{statements.verdict(records)}", "bold")
    for line in statements.evidence(records):
        say(line)
    counts = ", ".join(f"{len(records.in_state(state))} {title}" for state, title in STATES.items())
    say(f"Search: {len(records.trials)} of {records.search.trials} trials ({counts}).")
    for table in summary_tables(records):
        console.print()
        console.print(_table(table), soft_wrap=False)
    if lines := statements.caveats(records):
        say("\nCaveats", "bold")
        for line in lines:
            say(f"- {line}")
    say("\nNext steps", "bold")
    for text, command in statements.next_steps(records):
        say(f"- {text}")
        if command:
            console.print(Text(f"  {command}"), soft_wrap=True)  # to be copied
    console.print(Text(f"\nReport: {records.folder / 'report.html'}"), soft_wrap=True)


def _table(table: Table) -> RichTable:
    shown = RichTable(
        title=Text(table.title), title_justify="left", box=None, min_width=len(table.title), pad_edge=False
    )
    for place, column in enumerate(table.columns):
        if place < table.texts:
            shown.add_column(Text(column), overflow="fold")
        else:
            shown.add_column(Text(column), justify="right", no_wrap=True)
    for _, cells in table.rows:
        shown.add_row(*map(Text, cells))
    return shown
