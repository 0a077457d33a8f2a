"""Terminal summary of a study."""

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from prometar.errors import one_line
from tune.records.folder import Records
from tune.report import statements
from tune.report.tables import Table, summary_tables


def print_summary(console: Console, records: Records) -> None:
    """Print the verdict, the evidence for it, summary tables, caveats and next steps."""

    def print_wrapped(text: str, style: str = "") -> None:
        console.print(Text("\n".join(map(one_line, text.split("\n"))), style), soft_wrap=False)

    print_wrapped(f"\n{statements.verdict_text(records)}", "bold")
    for line in statements.evidence(records):
        print_wrapped(line)
    print_wrapped(statements.search_summary(records))
    for table in summary_tables(records):
        console.print()
        console.print(_rich_table(table), soft_wrap=False)
    caveats = statements.caveats(records)
    if caveats:
        print_wrapped("\nCaveats", "bold")
        for line in caveats:
            print_wrapped(f"- {line}")
    print_wrapped("\nNext steps", "bold")
    for text, command in statements.next_steps(records):
        print_wrapped(f"- {text}")
        if command:
            console.print(Text(f"  {one_line(command)}"), soft_wrap=True)  # without line breaks, for copying
    console.print(Text(f"\nReport: {records.folder / 'report.html'}"), soft_wrap=True)


def _rich_table(table: Table) -> RichTable:
    rich_table = RichTable(
        title=Text(table.title), title_justify="left", box=None, min_width=len(table.title), pad_edge=False
    )
    for index, column in enumerate(table.columns):
        if index < table.num_text_columns:
            rich_table.add_column(Text(column), overflow="fold")
        else:
            rich_table.add_column(Text(column), justify="right", no_wrap=True)
    for row in table.rows:
        rich_table.add_row(*(Text(one_line(cell)) for cell in row.cells))
    return rich_table
