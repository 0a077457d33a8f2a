"""A comparison as a terminal table and as CSV."""

import csv
import io

from rich.console import Console
from rich.table import Table

from prometar.comparison.paired import Comparison, Difference
from prometar.metrics import HARMONIC, t_interval

CSV_HEAD = (
    "column", "method", "reference", "dataset", "unit", "n", "difference", "low", "high", "wins", "ties",
    "losses", "p", "p_holm",
)  # fmt: skip
_NONE = "–"


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print a table with one row per column and method, then how to read it."""
    table = Table("", "method", box=None, pad_edge=False)
    for name in ("difference", "95% CI", "n", "p", "p (Holm)", "w–t–l"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in comparison.differences:
        table.add_row(each.column, each.method, *_cells(each))
    console.print(table)
    for note in notes(comparison):
        console.print(f"- {note}")


def _cells(difference: Difference) -> tuple[str, ...]:
    interval = difference.interval
    return (
        f"{difference.mean:+.2f}",
        f"[{interval.low:+.2f}, {interval.high:+.2f}]" if interval else _NONE,
        f"{len(difference.values)} {difference.unit}",
        *(_NONE if p is None else f"{p:.3f}" for p in (difference.p, difference.p_holm)),
        "–".join(map(str, difference.wins_ties_losses)),
    )


def notes(comparison: Comparison) -> list[str]:
    """Explain the table in sentences, and name what is missing."""
    lines = [
        f"Each row is a method minus {comparison.reference} in points, paired by dataset and seed. "
        "The mean is over seeds, then over datasets.",
        "p: two-sided Wilcoxon signed-rank test over datasets. It is at least 2 / 2^n for n datasets.",
        "p (Holm): corrected for all methods of the column. w–t–l: datasets won, tied and lost.",
    ]
    if any(each.column == HARMONIC for each in comparison.differences):
        lines.append("H is computed per run, so its difference may not equal that of the averages' H.")
    return [*lines, *comparison.notes]


def as_csv(comparison: Comparison) -> str:
    """Return one line per column and method, followed by one per dataset."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for each in comparison.differences:
        names = (each.column, each.method, comparison.reference)
        tests = (*each.wins_ties_losses, _number(each.p), _number(each.p_holm))
        writer.writerow((*names, "", each.unit, *_figures(each.values), *tests))
        for dataset, by_seed in each.by_dataset.items():
            writer.writerow((*names, dataset, "seeds", *_figures(by_seed), "", "", "", "", ""))
    return file.getvalue()


def _figures(values: tuple[float, ...]) -> tuple[int, str, str, str]:
    interval = t_interval(values)
    low, high = (interval.low, interval.high) if interval else (None, None)
    return len(values), _number(sum(values) / len(values)), _number(low), _number(high)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
