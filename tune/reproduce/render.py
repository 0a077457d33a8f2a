"""Result tables of `prometar reproduce`: in the terminal, as CSV and as Markdown."""

import io
from collections.abc import Sequence

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Column, Table

from prometar.comparison.render import csv_text, format_csv_number
from tune.reproduce.grid import Grid
from tune.reproduce.results import AccuracySummary, Row

_ESCAPES = str.maketrans({c: f"\\{c}" for c in "\\`*_[]|#~"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def print_table(grid: Grid, rows: Sequence[Row], notes: Sequence[str], console: Console) -> None:
    """Print the table and its notes."""
    console.print(grid.title)
    console.print(_table(grid, rows, markdown=False))
    for note in notes:
        console.print(f"- {note}")


def as_markdown(grid: Grid, rows: Sequence[Row], notes: Sequence[str]) -> str:
    """Return the table as Markdown, followed by its notes."""
    file = io.StringIO()
    console = Console(file=file, width=10_000, markup=False, emoji=False, color_system=None)
    console.print(_table(grid, rows, markdown=True))
    table = "\n".join(line.strip() for line in file.getvalue().splitlines())
    bullets = "\n".join(f"- {_escape_markdown(note)}" for note in notes)
    return f"{_escape_markdown(grid.title)}\n\n{table.strip()}\n\n{bullets}\n"


def _table(grid: Grid, rows: Sequence[Row], *, markdown: bool) -> Table:
    convert, separator = (_escape_markdown, " ") if markdown else (str, "\n")
    names = (Column(name, overflow="fold") for name in ("dataset", "method"))
    table = Table(*names, box=MARKDOWN if markdown else None, pad_edge=markdown)
    for name in ("n", *grid.columns):
        table.add_column(name, justify="right")
    for dataset, method, summaries in rows:
        counts = sorted({summary.n for summary in summaries.values()}) or [0]
        n_range = "–".join(map(str, dict.fromkeys((counts[0], counts[-1]))))  # 3, or 2–3 if columns differ
        cells = [_cell(summaries.get(column), separator) for column in grid.columns]
        table.add_row(convert(dataset), convert(method), n_range, *map(convert, cells))
    return table


def _cell(summary: AccuracySummary | None, separator: str) -> str:
    if summary is None:
        return "–"
    lines = [f"{summary.mean:.2f}"]
    if summary.interval is not None:
        interval = summary.interval
        lines = [f"{summary.mean:.2f} ± {summary.sd:.2f}", f"[{interval.low:.2f}, {interval.high:.2f}]"]
    if summary.published is not None:
        lines.append(f"published {summary.published:.2f} ({summary.mean - summary.published:+.2f})")
    return separator.join(lines)


def as_csv(grid: Grid, rows: Sequence[Row]) -> str:
    """Return the table as CSV, with one line per dataset, method and column that has results."""
    statistics = ("n", "mean", "sd", "low", "high", "published", "difference")
    lines: list[tuple[object, ...]] = [("protocol", "dataset", "method", "column", *statistics)]
    for dataset, method, summaries in rows:
        for column in grid.columns:
            summary = summaries.get(column)
            if summary is None:
                continue
            low, high = (summary.interval.low, summary.interval.high) if summary.interval else (None, None)
            difference = None if summary.published is None else summary.mean - summary.published
            numbers = (summary.mean, summary.sd, low, high, summary.published, difference)
            lines.append(
                (grid.protocol.name, dataset, method, column, summary.n, *map(format_csv_number, numbers))
            )
    return csv_text(lines)


def _escape_markdown(text: str) -> str:
    return " ".join(text.split()).translate(_ESCAPES)
