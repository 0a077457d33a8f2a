"""A table for the terminal, and as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table as Grid

from prometar.checkpoint import write_atomically
from prometar.reproduce.figures import Figure, Row, Table

NONE = "–"
_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "±": r"$\pm$", "–": "--",
}  # fmt: skip
_MARKDOWN = "\\`*_[]|#"


def write_tables(table: Table, folder: Path) -> list[Path]:
    """FOLDER/table.csv, table.md and table.tex."""
    made = {"table.csv": as_csv(table), "table.md": as_markdown(table), "table.tex": as_latex(table)}
    for name, text in made.items():
        write_atomically(folder / name, text.encode())
    return [folder / name for name in made]


def print_table(table: Table, console: Console) -> None:
    """The table and its notes."""
    grid = Grid(title=table.title, title_justify="left", box=None)
    head, *rows = _cells(table, "\n")
    for k, name in enumerate(head):
        grid.add_column(name, justify="left" if k < 2 else "right", no_wrap=True)
    previous = ""
    for row in rows:
        grid.add_row(*(["", *row[1:]] if row[0] == previous else row))
        previous = row[0]
    console.print(grid)
    for note in table.notes:
        console.print(f"- {note}")


def as_csv(table: Table) -> str:
    """A line a figure, with four decimals; empty where there is none."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    fields = ("mean", "sd", "low", "high", "published", "difference")
    writer.writerow(("protocol", "dataset", "method", "column", "n", *fields))
    for row in table.rows:
        for column in table.columns:
            figure = row.figures.get(column)
            values = [getattr(figure, name, None) for name in fields]
            numbers = ["" if value is None else f"{value:.4f}" for value in values]
            writer.writerow(
                (table.protocol, row.dataset, row.method, column, figure.n if figure else 0, *numbers)
            )
    return file.getvalue()


def as_markdown(table: Table) -> str:
    """A Markdown table, its notes below."""
    head, *rows = [[_markdown(cell) for cell in row] for row in _cells(table, " ")]
    lines = [head, [":--", ":--", *["--:"] * (len(head) - 2)], *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "\n".join(f"- {_markdown(note)}" for note in table.notes)
    return f"{_markdown(table.title)}\n\n{text}\n\n{notes}\n"


def as_latex(table: Table) -> str:
    """A LaTeX tabular that needs no package; title and notes as comments."""
    head, *rows = [[_latex(cell) for cell in row] for row in _cells(table, " ")]
    comments = "".join(f"% {' '.join(line.split())}\n" for line in (table.title, *table.notes))
    body = "".join(f"{' & '.join(row)} \\\\\n" for row in rows)
    columns = "ll" + "r" * (len(head) - 2)
    return (
        f"{comments}\\begin{{tabular}}{{{columns}}}\n\\hline\n{' & '.join(head)} \\\\\n\\hline\n{body}"
        "\\hline\n\\end{tabular}\n"
    )


def _cells(table: Table, gap: str) -> list[list[str]]:
    """Head and rows as text; `gap` stands between a mean and its interval."""
    cited = any(f.published is not None for row in table.rows for f in row.figures.values())
    head = ["data set", "method", "n", *table.columns, *(["published", "difference"] if cited else [])]
    lines = [head]
    for row in table.rows:
        line = [row.dataset, row.method, _n(row), *(_figure(row.figures.get(c), gap) for c in table.columns)]
        if cited:
            line += [_joined(table, row, lambda f: f.published, ".2f")]
            line += [_joined(table, row, lambda f: f.difference, "+.2f")]
        lines.append(line)
    return lines


def _n(row: Row) -> str:
    """Seeds: one number, or the least and the most of the columns."""
    counts = sorted({figure.n for figure in row.figures.values()}) or [0]
    return str(counts[0]) if counts[0] == counts[-1] else f"{counts[0]}–{counts[-1]}"


def _figure(figure: Figure | None, gap: str) -> str:
    if figure is None:
        return NONE
    if figure.sd is None:
        return f"{figure.mean:.2f}"
    return f"{figure.mean:.2f} ± {figure.sd:.2f}{gap}[{figure.low:.2f}, {figure.high:.2f}]"


def _joined(table: Table, row: Row, value_of: Callable[[Figure], float | None], form: str) -> str:
    """One value a column, as base / new / H."""
    values: Iterable[float | None] = (
        value_of(row.figures[c]) if c in row.figures else None for c in table.columns
    )
    texts = [NONE if value is None else format(value, form) for value in values]
    return NONE if set(texts) == {NONE} else " / ".join(texts)


def _markdown(text: str) -> str:
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in _MARKDOWN else c for c in plain)


def _latex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in " ".join(text.split()))
