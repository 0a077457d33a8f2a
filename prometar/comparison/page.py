"""A comparison as one self-contained page."""

from statistics import mean

from markupsafe import Markup

from prometar.comparison.paired import Column, Comparison
from prometar.comparison.render import HEAD, NONE, bounds, cells, notes, num_datasets
from prometar.io.pages import mark, templates
from prometar.metrics import t_interval

KIND = "compare"
"""Of page, for `prometar.io.pages`."""


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
            plots={_plot_title(column): column.ranks for column in found.columns if column.ranks},
            by_dataset={column.name: _by_dataset(found, column) for column in found.columns},
            notes=notes(found),
        )
    )


def _plot_title(column: Column) -> str:
    return f"{column.name}: average rank over {num_datasets([len(column.ranked)])}, 1 is best"


def _by_dataset(found: Comparison, column: Column) -> list[tuple[str, ...]]:
    """A row a data set: its name, and the difference of each method with its interval over seeds."""
    rows = []
    for dataset in found.datasets:
        pairs = [difference.by_dataset.get(dataset) for difference in column.differences.values()]
        rows.append((dataset, *(bounds(mean(p), t_interval(p)) if p else NONE for p in pairs)))
    return rows
