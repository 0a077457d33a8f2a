"""Tables of a tuned comparison: for the page, the terminal and as CSV."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table as TerminalTable

from prometar.cli.console import format_duration
from prometar.comparison.render import csv_text, rounded
from tune.report.formatting import DASH, format_difference, format_mean, format_setting
from tune.report.tables import Table
from tune.tuned.comparison import TunedComparison
from tune.tuned.results import CellResult, Cost, TunedResults

_ALL = "all datasets"


def results_table(results: TunedResults) -> Table:
    """Return a row per dataset and method, and a row per method over all datasets if there are several."""
    rows = [("selected" if _has_gained(cell) else "", _cells_of(cell)) for cell in results.cells.values()]
    if len(results.datasets) > 1:
        rows += [("baseline", _average_cells(results, method)) for method in results.methods]
    columns = ("dataset", "method", "published", "tuned", "gain", "95% CI", "trials", "steps", "time")
    return Table(
        "H (%) on the test images, mean ± standard deviation over seeds", columns, rows, num_text_columns=2
    )


def _has_gained(cell: CellResult) -> bool:
    return cell.interval is not None and cell.interval.low > 0


def _cells_of(cell: CellResult) -> tuple[str, ...]:
    interval = format_difference(cell.interval) if cell.interval else None
    gain = DASH if cell.gain is None or cell.keeps_published else f"{cell.gain:+.1f}"
    gain, bounds = interval or (gain, DASH)
    values = (format_mean(list(cell.published.values())), format_mean(list(cell.tuned.values())))
    return cell.dataset, cell.method, *values, gain, bounds, *_cost_cells(cell.cost)


def _average_cells(results: TunedResults, method: str) -> tuple[str, ...]:
    cells = results.of_method(method)
    label = (
        _ALL if len(cells) == len(results.datasets) else f"{len(cells)} of {len(results.datasets)} datasets"
    )
    published = format_mean([cell.published_mean for cell in cells if cell.published_mean is not None])
    tuned = format_mean([cell.tuned_mean for cell in cells if cell.tuned_mean is not None])
    interval = results.gain_over_datasets(method)
    is_tuned = method not in results.untrained
    gain, bounds = format_difference(interval) if interval and is_tuned else (DASH, DASH)
    return label, method, published, tuned, gain, bounds, *_cost_cells(results.cost_of(method))


def _cost_cells(cost: Cost) -> tuple[str, ...]:
    if not cost.trials:
        return DASH, DASH, DASH
    return str(cost.trials), f"{cost.steps:,}", format_duration(cost.seconds)


def ranks_table(results: TunedResults) -> Table | None:
    """Return the average ranks before and after tuning, None without a ranking."""
    ranking = results.ranking
    if ranking is None:
        return None
    before = ranking.published
    after = ranking.tuned
    rows = [
        (
            "",
            (
                method,
                f"{before.ranks[method]:.2f}",
                f"{after.ranks[method]:.2f}",
                f"{after.ranks[method] - before.ranks[method]:+.2f}",
            ),
        )
        for method in after.methods
    ]
    return Table("Average ranks (1 is best)", ("method", "published", "tuned", "change"), rows)


def searched_table(comparison: TunedComparison) -> Table:
    """Return the searched settings of each method, with their number."""
    rows = [
        ("", (method, str(len(shared) + len(own)), ", ".join(shared) or DASH, ", ".join(own) or DASH))
        for method, (shared, own) in comparison.searched_settings().items()
    ]
    columns = ("method", "number", "shared with other methods", "its own")
    return Table("Searched settings", columns, rows, num_text_columns=4)


def selected_table(results: TunedResults) -> Table:
    """Return the selected settings that differ from the published ones."""
    rows = []
    for cell in results.cells.values():
        if cell.method not in results.untrained and cell.tuned:
            changes = ", ".join(f"{key} = {format_setting(value)}" for key, value in cell.changed.items())
            rows.append(("", (cell.dataset, cell.method, changes or "published settings")))
    return Table("Selected settings", ("dataset", "method", "changed settings"), rows, num_text_columns=3)


def print_tables(results: TunedResults, console: Console) -> None:
    """Print the tables of results and of ranks."""
    ranks = ranks_table(results)
    for table in (results_table(results), *([ranks] if ranks else [])):
        console.print(table.title)
        shown = TerminalTable(box=None, pad_edge=False)
        for number, name in enumerate(table.columns):
            is_text = number < table.num_text_columns
            shown.add_column(name, justify="left" if is_text else "right", overflow="fold")
        for _, cells in table.rows:
            shown.add_row(*cells)
        console.print(shown)


def results_csv(results: TunedResults) -> str:
    """Return CSV with a line per dataset and method."""
    header = "dataset method n published tuned gain low high trials steps seconds selected missing"
    rows: list[Iterable[object]] = [header.split()]
    for cell in results.cells.values():
        interval = cell.interval
        bounds = (interval.low, interval.high) if interval else (None, None)
        means = map(rounded, (cell.published_mean, cell.tuned_mean, cell.gain, *bounds))
        cost = cell.cost
        selected = "published" if cell.keeps_published else "tuned" * bool(cell.tuned)
        costs = (cost.trials, cost.steps, f"{cost.seconds:.1f}")
        rows.append((cell.dataset, cell.method, len(cell.gains), *means, *costs, selected, cell.missing))
    return csv_text(rows)


def ranks_csv(results: TunedResults) -> str:
    """Return CSV with a line per method: average rank and mean score, before and after tuning."""
    rows: list[Iterable[object]] = [
        ("method", "rank_published", "rank_tuned", "mean_published", "mean_tuned")
    ]
    ranking = results.ranking
    if ranking is not None:
        for method in ranking.tuned.methods:
            orders = ranking.published, ranking.tuned
            ranks = [rounded(order.ranks[method]) for order in orders]
            means = [rounded(order.means[method]) for order in orders]
            rows.append((method, *ranks, *means))
    return csv_text(rows)
