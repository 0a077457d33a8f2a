"""A grid's table for the terminal, as CSV and as Markdown."""

import io
from collections.abc import Sequence

from rich.box import MARKDOWN, Box
from rich.console import Console
from rich.table import Table

from prometar.comparison.render import csv_text, decimal
from tune.reproduce.figures import Figure, Row
from tune.reproduce.grid import Grid

_ESCAPED = str.maketrans({c: f"\\{c}" for c in "\\`*_[]|#~"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def print_table(grid: Grid, rows: Sequence[Row], notes: Sequence[str], console: Console) -> None:
    """Print the table and its notes."""
    console.print(grid.title)
    console.print(_table(grid, rows, "\n"))
    for note in notes:
        console.print(f"- {note}")


def as_markdown(grid: Grid, rows: Sequence[Row], notes: Sequence[str]) -> str:
    """Return a Markdown table with its notes below."""
    file = io.StringIO()
    console = Console(file=file, width=10_000, markup=False, highlight=False)
    console.print(_table(grid, rows, " ", MARKDOWN))
    table = "\n".join(line.strip() for line in file.getvalue().splitlines())
    listed = "\n".join(f"- {_escaped(note)}" for note in notes)
    return f"{_escaped(grid.title)}\n\n{table.strip()}\n\n{listed}\n"


def _table(grid: Grid, rows: Sequence[Row], separator: str, box: Box | None = None) -> Table:
    shown = _escaped if box else str
    table = Table("dataset", "method", box=box, pad_edge=box is not None)
    for name in ("n", *grid.columns):
        table.add_column(name, justify="right", no_wrap=True)
    for dataset, method, figures in rows:
        counts = sorted({figure.n for figure in figures.values()}) or [0]
        n = "–".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        cells = [_cell(figures.get(column), separator) for column in grid.columns]
        table.add_row(shown(dataset), shown(method), n, *map(shown, cells))
    return table


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


def as_csv(grid: Grid, rows: Sequence[Row]) -> str:
    """Return one line per figure that there is."""
    fields = ("n", "mean", "sd", "low", "high", "published", "difference")
    lines: list[tuple[object, ...]] = [("protocol", "dataset", "method", "column", *fields)]
    for dataset, method, figures in rows:
        for column in grid.columns:
            if (figure := figures.get(column)) is None:
                continue
            low, high = (figure.interval.low, figure.interval.high) if figure.interval else (None, None)
            difference = None if figure.published is None else figure.mean - figure.published
            numbers = (figure.mean, figure.sd, low, high, figure.published, difference)
            lines.append((grid.name, dataset, method, column, figure.n, *map(decimal, numbers)))
    return csv_text(lines)


def _escaped(text: str) -> str:
    return " ".join(text.split()).translate(_ESCAPED)
