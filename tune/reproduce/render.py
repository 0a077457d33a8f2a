"""A grid's table for the terminal, as CSV and as Markdown."""

import io
from collections.abc import Sequence
from pathlib import Path

from rich.box import MARKDOWN, Box
from rich.console import Console
from rich.table import Table as Grid

from prometar.comparison.paired import Difference
from prometar.comparison.render import as_csv as pairs_as_csv
from prometar.comparison.render import csv_text, decimal
from prometar.io.files import write_atomically
from tune.reproduce.figures import Figure, Table

_ESCAPED = str.maketrans({c: f"\\{c}" for c in "\\`*_[]|#~"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def write_tables(table: Table, pairs: Sequence[Difference], folder: Path) -> list[Path]:
    """Write FOLDER/table.csv, table.md and pairs.csv."""
    made = {"table.csv": as_csv(table), "table.md": as_markdown(table), "pairs.csv": pairs_as_csv(pairs)}
    for name, text in made.items():
        write_atomically(folder / name, text.encode())
    return [folder / name for name in made]


def print_table(table: Table, console: Console) -> None:
    """Print the table and its notes."""
    console.print(table.title)
    console.print(_grid(table, "\n"))
    for note in table.notes:
        console.print(f"- {note}")


def as_markdown(table: Table) -> str:
    """Return a Markdown table with its notes below."""
    file = io.StringIO()
    console = Console(file=file, width=10_000, markup=False, highlight=False)
    console.print(_grid(table, " ", MARKDOWN))
    rows = "\n".join(line.strip() for line in file.getvalue().splitlines())
    notes = "\n".join(f"- {_escaped(note)}" for note in table.notes)
    return f"{_escaped(table.title)}\n\n{rows.strip()}\n\n{notes}\n"


def _grid(table: Table, separator: str, box: Box | None = None) -> Grid:
    shown = _escaped if box else str
    grid = Grid("dataset", "method", box=box, pad_edge=box is not None)
    for name in ("n", *table.columns):
        grid.add_column(name, justify="right", no_wrap=True)
    for dataset, method, figures in table.rows:
        counts = sorted({figure.n for figure in figures.values()}) or [0]
        n = "–".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        cells = [_cell(figures.get(column), separator) for column in table.columns]
        grid.add_row(shown(dataset), shown(method), n, *map(shown, cells))
    return grid


def _cell(figure: Figure | None, separator: str) -> str:
    if figure is None:
        return "–"
    lines = [f"{figure.mean:.2f}"]
    if figure.interval is not None:
        low, high = figure.interval.low, figure.interval.high
        lines = [f"{figure.mean:.2f} ± {figure.sd:.2f}", f"[{low:.2f}, {high:.2f}]"]
    if figure.published is not None:
        lines.append(f"published {figure.published:.2f} ({figure.mean - figure.published:+.2f})")
    return separator.join(lines)


def as_csv(table: Table) -> str:
    """Return one line per figure that there is."""
    fields = ("n", "mean", "sd", "low", "high", "published", "difference")
    rows: list[tuple[object, ...]] = [("protocol", "dataset", "method", "column", *fields)]
    for dataset, method, figures in table.rows:
        for column in table.columns:
            if (figure := figures.get(column)) is None:
                continue
            low, high = (figure.interval.low, figure.interval.high) if figure.interval else (None, None)
            difference = None if figure.published is None else figure.mean - figure.published
            numbers = (figure.mean, figure.sd, low, high, figure.published, difference)
            rows.append((table.protocol, dataset, method, column, figure.n, *map(decimal, numbers)))
    return csv_text(rows)


def _escaped(text: str) -> str:
    return " ".join(text.split()).translate(_ESCAPED)
