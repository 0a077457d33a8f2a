"""A grid's table for the terminal, as CSV and as Markdown."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table as Grid

from prometar.comparison.paired import Comparison
from prometar.comparison.render import as_csv as pairs_as_csv
from prometar.io.files import write_atomically
from prometar.reproduce.figures import Figure, Row, Table

_NONE = "–"
_MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\`*_[]|#~"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def write_tables(table: Table, pairs: Comparison, folder: Path) -> list[Path]:
    """Write FOLDER/table.csv, table.md and pairs.csv."""
    made = {"table.csv": as_csv(table), "table.md": as_markdown(table), "pairs.csv": pairs_as_csv(pairs)}
    for name, text in made.items():
        write_atomically(folder / name, text.encode())
    return [folder / name for name in made]


def print_table(table: Table, console: Console) -> None:
    """Print the table and its notes."""
    grid = Grid("", "method", box=None, pad_edge=False)
    for name in ("n", *table.columns):
        grid.add_column(name, justify="right", no_wrap=True)
    for cells in _cells(table, "\n"):
        grid.add_row(*cells)
    console.print(table.title)
    console.print(grid)
    for note in table.notes:
        console.print(f"- {note}")


def _cells(table: Table, separator: str) -> Iterator[list[str]]:
    for row in table.rows:
        figures = [row.figures.get(column) for column in table.columns]
        yield [row.dataset, row.method, _n(row), *(_cell(figure, separator) for figure in figures)]


def _n(row: Row) -> str:
    """Number of seeds, or the smallest and the largest number of the columns."""
    counts = sorted({figure.n for figure in row.figures.values()}) or [0]
    return "–".join(map(str, dict.fromkeys((counts[0], counts[-1]))))


def _cell(figure: Figure | None, separator: str) -> str:
    if figure is None:
        return _NONE
    lines = [f"{figure.mean:.2f}"]
    if figure.sd is not None:
        lines = [f"{figure.mean:.2f} ± {figure.sd:.2f}", f"[{figure.low:.2f}, {figure.high:.2f}]"]
    if figure.published is not None:
        lines.append(f"published {figure.published:.2f} ({figure.difference:+.2f})")
    return separator.join(lines)


def as_csv(table: Table) -> str:
    """Return one line per figure."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    fields = ("mean", "sd", "low", "high", "published", "difference")
    writer.writerow(("protocol", "dataset", "method", "column", "n", *fields))
    for row in table.rows:
        for column in table.columns:
            figure = row.figures.get(column)
            values = [getattr(figure, name, None) for name in fields]
            numbers = ["" if value is None else f"{value:.4f}" for value in values]
            n = figure.n if figure else 0
            writer.writerow((table.protocol, row.dataset, row.method, column, n, *numbers))
    return file.getvalue()


def as_markdown(table: Table) -> str:
    """Return a Markdown table with its notes below."""
    head = ["dataset", "method", "n", *table.columns]
    lines = [head, [":--", ":--", *["--:"] * (len(head) - 2)]]
    lines += [[_escaped(cell) for cell in cells] for cells in _cells(table, " ")]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "\n".join(f"- {_escaped(note)}" for note in table.notes)
    return f"{_escaped(table.title)}\n\n{rows}\n\n{notes}\n"


def _escaped(text: str) -> str:
    return " ".join(text.split()).translate(_MARKDOWN)
