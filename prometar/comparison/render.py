"""A comparison for the terminal and as CSV; `cells` are the page's too."""

import csv
import io

from rich.console import Console
from rich.table import Table as Grid

from prometar.comparison.paired import Column, Comparison, Difference
from prometar.metrics import HARMONIC, Interval, t_interval

HEAD = ("method", "difference", "over", "p", "Holm", "w–t–l", "rank")
NONE = "–"
REFERENCE = "reference"


def print_comparison(found: Comparison, console: Console) -> None:
    """A block a column, and how to read them."""
    console.print(found.title)
    for column in found.columns:
        console.print()
        console.print(_block(found, column))
    console.print()
    for note in notes(found):
        console.print(f"- {note}")


def _block(found: Comparison, column: Column) -> Grid:
    grid = Grid(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column(column.name, overflow="fold")  # labels may be long; numbers are never cut
    for name in HEAD[1:]:
        grid.add_column(name, justify="right", no_wrap=True)
    for row in cells(found, column):
        grid.add_row(*row)
    return grid


def cells(found: Comparison, column: Column) -> list[tuple[str, ...]]:
    """A row a method, under HEAD."""
    return [_row(found, column, method) for method in found.methods]


def _row(found: Comparison, column: Column, method: str) -> tuple[str, ...]:
    rank = f"{column.ranks[method]:.2f}" if method in column.ranks else NONE
    if method == found.reference:
        return method, REFERENCE, "", "", "", "", rank
    if method not in column.differences:
        return method, *[NONE] * 5, rank
    d = column.differences[method]
    wins = "–".join(map(str, d.wins_ties_losses))
    return (
        method, bounds(d.mean, d.interval), over(d), _p(d.p), _p(column.holm.get(method)), wins, rank
    )  # fmt: skip


def bounds(mean: float, interval: Interval | None) -> str:
    """
    Example:
        >>> bounds(1.0, Interval(1.0, -0.5, 2.5, 3)), bounds(-2.0, None)
        ('+1.00 [-0.50, +2.50]', '-2.00')
    """
    shown = f"{mean:+.2f}"
    return f"{shown} [{interval.low:+.2f}, {interval.high:+.2f}]" if interval else shown


def over(difference: Difference) -> str:
    """How many of what a mean and its interval are over.

    Example:
        >>> over(Difference({"dtd": (1.0, 2.0)}))
        '2 seeds'
    """
    n = len(difference.singles)
    return f"{n} {difference.over.removesuffix('s') if n == 1 else difference.over}"


def _p(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def notes(found: Comparison) -> list[str]:
    """How a comparison is to be read, in sentences, and what it is without."""
    units = {difference.over for difference in found.differences}
    lines = [
        f"difference: the method - {found.reference}, in points, paired by data set and seed; "
        "mean over seeds, then over data sets",
        *(
            f"[ ]: 95 % t-interval over {unit}{' where there is one data set' if unit == 'seeds' else ''}"
            for unit in sorted(units)
        ),
    ]
    if any(column.name == HARMONIC for column in found.columns):
        lines.append("H is that of each run, so a difference of H need not be that of the averages' H")
    lines += _tests(found)
    lines.append(
        f"w–t–l: data sets on which the method's mean is above, equal to and below {found.reference}'s"
    )
    ranked = num_datasets(sorted({len(column.ranked) for column in found.columns}))
    lines.append(f"rank: the method's place, 1 is best, averaged over {ranked}, those that all methods have")
    return lines + list(found.remarks)


def _tests(found: Comparison) -> list[str]:
    """What p-values are of, and what they cannot show."""
    if all(d.p is None for d in found.differences):
        return ["p: none, the signed-rank test is over data sets and needs more than one"]
    return [
        "p: exact two-sided signed-rank test (Wilcoxon) over data sets; "
        "Holm: corrected for the methods compared in the column",
        *(
            f"p cannot be below {_least_p(n):.4g} with {num_datasets([n])} whose difference is not 0: "
            f"{', '.join(methods)}"
            for n, methods in sorted(_too_few(found).items(), reverse=True)
        ),
    ]


def _too_few(found: Comparison) -> dict[int, list[str]]:
    """The methods whose p cannot reach 0.05, by the number of data sets that their test counts."""
    columns: dict[tuple[int, str], list[str]] = {}
    for column in found.columns:
        for method, difference in column.differences.items():
            wins, _, losses = difference.wins_ties_losses
            counted = wins + losses  # a difference of 0 tells the test nothing
            if difference.p is not None and _least_p(counted) > 0.05:
                columns.setdefault((counted, method), []).append(column.name)
    methods: dict[int, list[str]] = {}
    for (counted, method), names in columns.items():
        where = "" if len(names) == len(found.columns) else f" ({', '.join(names)})"
        methods.setdefault(counted, []).append(method + where)
    return methods


def _least_p(counted: int) -> float:
    """What the signed-rank test gives at least."""
    return min(1.0, 2 / 2**counted)


def num_datasets(counts: list[int]) -> str:
    """
    Example:
        >>> num_datasets([1]), num_datasets([2, 4])
        ('1 data set', '2–4 data sets')
    """
    return f"{'–'.join(map(str, counts[:1] + counts[1:][-1:]))} data set{'' if counts[-1] == 1 else 's'}"


CSV_HEAD = (
    "column", "method", "reference", "dataset", "over", "n", "difference", "low", "high",
    "wins", "ties", "losses", "p", "p_holm", "average_rank", "ranked_datasets",
)  # fmt: skip


def as_csv(found: Comparison) -> str:
    """A line for each column and method, and below it one for each of its data sets, which are over seeds.

    The former's `dataset` is empty. Points with four decimals; empty where there is none.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for column in found.columns:
        for method in found.methods:
            ranked = (_number(column.ranks.get(method)), len(column.ranked))
            names = (column.name, method, found.reference)
            if method not in column.differences:
                writer.writerow((*names, "", "", 0, *[""] * 8, *ranked))
                continue
            d = column.differences[method]
            figures = _figures(d.mean, d.interval)
            p = [_number(value, 6) for value in (d.p, column.holm.get(method))]
            writer.writerow((*names, "", d.over, len(d.singles), *figures, *d.wins_ties_losses, *p, *ranked))
            for (dataset, singles), mean in zip(d.by_dataset.items(), d.means, strict=True):
                figures = _figures(mean, t_interval(singles))
                writer.writerow((*names, dataset, "seeds", len(singles), *figures, *[""] * 7))
    return file.getvalue()


def _figures(mean: float, interval: Interval | None) -> list[str]:
    low, high = (interval.low, interval.high) if interval else (None, None)
    return [_number(value) for value in (mean, low, high)]


def _number(value: float | None, decimals: int = 4) -> str:
    return "" if value is None else f"{value:.{decimals}f}"
