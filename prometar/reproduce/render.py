"""A table for the terminal, and as CSV, Markdown and LaTeX; the files of methods in pairs."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as Grid

from prometar.comparison.paired import Comparison
from prometar.comparison.render import as_csv as pairs_as_csv
from prometar.io.files import write_atomically
from prometar.reproduce.figures import Figure, Row, Table

NONE = "–"
_LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "±": r"$\pm$", "–": "--",
}  # fmt: skip
_MARKDOWN = "\\`*_[]|#~"
_CELL = 18  # columns of "[100.00, 100.00]", the widest that is usual, and a gap
_PUBLISHED = "   published"


def write_tables(table: Table, pairs: Comparison, folder: Path) -> list[Path]:
    """Write FOLDER/table.csv, table.md and table.tex, and pairs.csv if anything is paired."""
    made = {"table.csv": as_csv(table), "table.md": as_markdown(table), "table.tex": as_latex(table)}
    if pairs.differences:
        made["pairs.csv"] = pairs_as_csv(pairs)
    else:
        (folder / "pairs.csv").unlink(missing_ok=True)  # of an earlier request
    for name, text in made.items():
        write_atomically(folder / name, text.encode())
    return [folder / name for name in made]


def print_table(table: Table, console: Console) -> None:
    """The table and its notes; columns that the console has no room for come in blocks of their own."""
    console.print(table.title)
    labels = (_PUBLISHED, *(f" {row.method}" for row in table.rows), *(row.dataset for row in table.rows))
    room = max(1, (console.width - max(map(len, labels)) - len("  1–3")) // _CELL)
    for start in range(0, len(table.columns), room):
        console.print()
        console.print(_block(table, table.columns[start : start + room]))
    console.print()
    for note in table.notes:
        console.print(f"- {note}")


def _block(table: Table, columns: Sequence[str]) -> Grid:
    grid = Grid(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column("method", no_wrap=True)
    for name in ("n", *columns):
        grid.add_column(name, justify="right", no_wrap=True)
    dataset = ""
    for row in table.rows:
        if row.dataset != dataset:
            dataset = row.dataset
            grid.add_row(dataset)
        figures = [row.figures.get(column) for column in columns]
        grid.add_row(f" {row.method}", _n(row), *map(_mean, figures))
        for label, texts in (("", map(_interval, figures)), (_PUBLISHED, map(_published, figures))):
            line = list(texts)
            if any(line):
                grid.add_row(label, "", *line)
    return grid


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
    head, *rows = [[_markdown(cell) for cell in row] for row in _cells(table)]
    lines = [head, [":--", ":--", *["--:"] * (len(head) - 2)], *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "\n".join(f"- {_markdown(note)}" for note in table.notes)
    return f"{_markdown(table.title)}\n\n{text}\n\n{notes}\n"


def as_latex(table: Table) -> str:
    """A LaTeX tabular that needs no package; title and notes as comments."""
    head, *rows = [[_latex(cell) for cell in row] for row in _cells(table)]
    comments = "".join(f"% {' '.join(line.split())}\n" for line in (table.title, *table.notes))
    body = "".join(f"{' & '.join(row)} \\\\\n" for row in rows)
    columns = "ll" + "r" * (len(head) - 2)
    return (
        f"{comments}\\begin{{tabular}}{{{columns}}}\n\\hline\n{' & '.join(head)} \\\\\n\\hline\n{body}"
        "\\hline\n\\end{tabular}\n"
    )


def _cells(table: Table) -> list[list[str]]:
    """Head and rows as text."""
    cited = any(f.published is not None for row in table.rows for f in row.figures.values())
    head = ["data set", "method", "n", *table.columns, *(["published", "difference"] if cited else [])]
    lines = [head]
    for row in table.rows:
        figures = [row.figures.get(column) for column in table.columns]
        line = [row.dataset, row.method, _n(row), *(f"{_mean(f)} {_interval(f)}".strip() for f in figures)]
        if cited:
            line.append(_joined(f.published if f else None for f in figures))
            line.append(_joined((f.difference if f else None for f in figures), sign="+"))
        lines.append(line)
    return lines


def _n(row: Row) -> str:
    """Seeds: one number, or the least and the most of the columns."""
    counts = sorted({figure.n for figure in row.figures.values()}) or [0]
    return str(counts[0]) if counts[0] == counts[-1] else f"{counts[0]}–{counts[-1]}"


def _mean(figure: Figure | None) -> str:
    if figure is None:
        return NONE
    return f"{figure.mean:.2f}" + ("" if figure.sd is None else f" ± {figure.sd:.2f}")


def _interval(figure: Figure | None) -> str:
    return "" if figure is None or figure.low is None else f"[{figure.low:.2f}, {figure.high:.2f}]"


def _published(figure: Figure | None) -> str:
    if figure is None or figure.published is None:
        return ""
    return f"{figure.published:.2f} ({figure.difference:+.2f})"


def _joined(values: Iterable[float | None], sign: str = "") -> str:
    """One value a column, as base / new / H."""
    texts = [NONE if value is None else format(value, f"{sign}.2f") for value in values]
    return NONE if set(texts) <= {NONE} else " / ".join(texts)


def _markdown(text: str) -> str:
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in _MARKDOWN else c for c in plain)


def _latex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in " ".join(text.split()))
