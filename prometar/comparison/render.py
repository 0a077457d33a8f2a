"""Terminal table and CSV of a comparison."""

import csv
import io
from collections.abc import Iterable, Sequence
from statistics import mean

from rich.console import Console
from rich.table import Column, Table

from prometar.comparison.paired import Difference
from prometar.metrics import HARMONIC, t_interval

_DASH = "–"
_CSV_COLUMNS = (
    "metric",
    "method",
    "reference",
    "dataset",
    "unit",
    "n",
    "difference",
    "low",
    "high",
    "p",
    "p_holm",
)


def print_comparison(differences: Sequence[Difference], notes: Sequence[str], console: Console) -> None:
    """Print a table with one row per metric and method, followed by explanations and notes."""
    table = Table("", Column("method", overflow="fold"), box=None, pad_edge=False)
    for name in ("difference", "95% CI", "n", "p", "p (Holm)"):
        table.add_column(name, justify="right", no_wrap=True)
    has_one_reference = len({difference.reference for difference in differences}) == 1
    for difference in differences:
        method = difference.method
        if not has_one_reference:
            method = f"{method} - {difference.reference}"
        table.add_row(difference.metric, method, *_number_cells(difference))
    console.print(table)
    for note in (*_explanations(differences, has_one_reference), *notes):
        console.print(f"- {note}")


def _number_cells(difference: Difference) -> list[str]:
    """Return the cells of the columns difference, 95% CI, n, p and p (Holm)."""
    interval = difference.interval
    interval_text = _DASH
    if interval is not None:
        interval_text = f"[{interval.low:+.2f}, {interval.high:+.2f}]"
    num_values = len(difference.values)
    unit = difference.unit.removesuffix("s") if num_values == 1 else difference.unit
    return [
        f"{mean(difference.values):+.2f}",
        interval_text,
        f"{num_values} {unit}",
        _p_text(difference.p),
        _p_text(difference.p_holm),
    ]


def _explanations(differences: Sequence[Difference], has_one_reference: bool) -> list[str]:
    """Return sentences that explain the table of `print_comparison`."""
    if has_one_reference:
        subtracted = f"a method minus {differences[0].reference}"
    else:
        subtracted = "a method in one folder minus the same method in another"
    explanations = [
        f"Each row shows {subtracted} in points, paired by dataset and seed. "
        "The difference is averaged over seeds, then over datasets.",
        "p: two-sided Wilcoxon signed-rank test over datasets. With n datasets, p is at least 2 / 2^n.",
        "p (Holm): corrected for the number of methods compared on this metric.",
    ]
    if any(difference.metric == HARMONIC for difference in differences):
        explanations.append("H is computed per run, so its mean is not the H of the mean accuracies.")
    return explanations


def _p_text(p: float | None) -> str:
    """Format a p-value for the terminal. None is a dash."""
    return _DASH if p is None else f"{p:.3f}"


def as_csv(differences: Sequence[Difference]) -> str:
    """Return CSV with a line per metric and method. Each of these is followed by a line per dataset."""
    lines: list[dict[str, object]] = []
    for difference in differences:
        names: dict[str, object] = {
            "metric": difference.metric,
            "method": difference.method,
            "reference": difference.reference,
        }
        overall = names | _summary(difference.values)
        overall["unit"] = difference.unit
        overall["p"] = format_csv_number(difference.p)
        overall["p_holm"] = format_csv_number(difference.p_holm)
        lines.append(overall)
        for dataset, seed_differences in difference.by_dataset.items():
            on_dataset = names | _summary(seed_differences)
            on_dataset["dataset"] = dataset
            on_dataset["unit"] = "seeds"
            lines.append(on_dataset)
    rows = [[line.get(column, "") for column in _CSV_COLUMNS] for line in lines]
    return csv_text([_CSV_COLUMNS, *rows])


def _summary(values: tuple[float, ...]) -> dict[str, object]:
    """Return the columns n, difference (the mean), low and high (bounds of its 95% confidence interval)."""
    interval = t_interval(values)
    low = interval.low if interval else None
    high = interval.high if interval else None
    return {
        "n": len(values),
        "difference": format_csv_number(mean(values)),
        "low": format_csv_number(low),
        "high": format_csv_number(high),
    }


def format_csv_number(value: float | None) -> str:
    """Format a number with four decimals, or None as ""."""
    return "" if value is None else f"{value:.4f}"


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Format rows as CSV."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()
