"""A comparison as one self-contained page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import mean

from markupsafe import Markup

from prometar.comparison.paired import Column, Comparison
from prometar.comparison.render import HEAD, NONE, bounds, cells, notes, num_datasets
from prometar.io.pages import mark, templates
from prometar.metrics import t_interval

KIND = "compare"
"""Of page, for `prometar.io.pages`."""

_LEFT, _WIDTH, _TOP, _ROW = 190, 480, 34, 26  # of a plot, in SVG units
_MOST_TICKS = 10  # that fit beside each other


@dataclass(frozen=True)
class Dot:
    """A method's average rank, and where it lies in a plot."""

    method: str
    rank: float
    reference: bool
    x: float
    y: float


@dataclass(frozen=True)
class RankPlot:
    """Average ranks on an axis from 1 (best) on, the best method first.

    Args:
        ticks: Places along the axis by rank.
    """

    title: str
    dots: tuple[Dot, ...]
    ticks: dict[int, float]
    width: int
    height: int
    left: int = _LEFT
    top: int = _TOP


def rank_plot(found: Comparison, column: Column) -> RankPlot | None:
    """The column's plot; None where nothing is ranked."""
    ranks = column.ranks
    if not ranks:
        return None
    last = max(2, len(ranks))

    def place(rank: float) -> float:
        return round(_LEFT + 14 + (rank - 1) / (last - 1) * (_WIDTH - _LEFT - 70), 1)

    dots = [
        Dot(m, ranks[m], m == found.reference, place(ranks[m]), _TOP + _ROW * (row + 0.5))
        for row, m in enumerate(sorted(ranks, key=ranks.__getitem__))
    ]
    every = math.ceil(last / _MOST_TICKS)
    ticks = {rank: place(rank) for rank in range(1, last + 1, every)}
    title = f"{column.name}: average rank over {num_datasets([len(column.ranked)])}, 1 is best"
    return RankPlot(title, tuple(dots), ticks, _WIDTH, _TOP + _ROW * len(dots) + 8)


def page(found: Comparison) -> str:
    """The HTML page."""
    return (
        templates("prometar.comparison")
        .get_template("comparison.html.jinja")
        .render(
            mark=Markup(mark(KIND)),
            found=found,
            head=HEAD,
            cells={column.name: cells(found, column) for column in found.columns},
            plots=[plot for column in found.columns if (plot := rank_plot(found, column))],
            by_dataset={column.name: _by_dataset(found, column) for column in found.columns},
            notes=notes(found),
        )
    )


def _by_dataset(found: Comparison, column: Column) -> list[tuple[str, ...]]:
    """A row a data set: its name, and the difference of each method with its interval over seeds."""
    rows = []
    for dataset in found.datasets:
        pairs = [difference.by_dataset.get(dataset) for difference in column.differences.values()]
        rows.append((dataset, *(bounds(mean(p), t_interval(p)) if p else NONE for p in pairs)))
    return rows
