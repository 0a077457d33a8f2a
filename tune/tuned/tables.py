"""Tables of a tuned comparison: for the page, the terminal and as CSV."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table as TerminalTable

from prometar.cli.console import format_duration
from prometar.comparison.render import csv_text, format_csv_number
from tune.report.formatting import DASH, format_difference, format_mean, format_setting
from tune.report.tables import Row, Table
from tune.tuned.comparison import TunedComparison
from tune.tuned.results import CellResult, Cost, TunedResults


def results_table(results: TunedResults) -> Table:
    """Return a row per dataset and method, and a row per method over all datasets if there are several."""
    rows: list[Row] = []
    for cell in results.cells.values():
        rows.append(Row(_cells_of(cell), css_class="selected" if _has_gained(cell) else ""))
    if len(results.datasets) > 1:
        for method in results.methods:
            rows.append(Row(_average_cells(results, method), css_class="baseline"))
    columns = ("dataset", "method", "published", "tuned", "gain", "95% CI", "trials", "steps", "time")
    return Table(
        "H (%) on the test images, mean ± standard deviation over seeds", columns, rows, num_text_columns=2
    )


def _has_gained(cell: CellResult) -> bool:
    return cell.interval is not None and cell.interval.low > 0


def _cells_of(cell: CellResult) -> tuple[str, ...]:
    gain = DASH
    bounds = DASH
    if cell.interval is not None:
        gain, bounds = format_difference(cell.interval)
    elif cell.gain is not None and not cell.keeps_published:
        gain = f"{cell.gain:+.1f}"
    return (
        cell.dataset,
        cell.method,
        format_mean(cell.published.values()),
        format_mean(cell.tuned.values()),
        gain,
        bounds,
        *_cost_cells(cell.cost),
    )


def _average_cells(results: TunedResults, method: str) -> tuple[str, ...]:
    cells = [results.cells[method, dataset] for dataset in results.gains_of(method)]
    label = "all datasets"
    if len(cells) < len(results.datasets):
        label = f"{len(cells)} of {len(results.datasets)} datasets"
    gain = DASH
    bounds = DASH
    interval = results.gain_over_datasets(method)
    if interval is not None and method not in results.untrained:
        gain, bounds = format_difference(interval)
    return (
        label,
        method,
        format_mean([cell.published_mean for cell in cells if cell.published_mean is not None]),
        format_mean([cell.tuned_mean for cell in cells if cell.tuned_mean is not None]),
        gain,
        bounds,
        *_cost_cells(results.cost_of(method)),
    )


def _cost_cells(cost: Cost) -> tuple[str, ...]:
    if not cost.trials:
        return DASH, DASH, DASH
    return str(cost.trials), f"{cost.steps:,}", format_duration(cost.seconds)


def ranks_table(results: TunedResults) -> Table | None:
    """Return the average ranks before and after tuning, None without a ranking."""
    ranking = results.ranking
    if ranking is None:
        return None
    rows: list[Row] = []
    for method in ranking.tuned.methods:
        before = ranking.published.ranks[method]
        after = ranking.tuned.ranks[method]
        rows.append(Row((method, f"{before:.2f}", f"{after:.2f}", f"{after - before:+.2f}")))
    return Table("Average ranks (1 is best)", ("method", "published", "tuned", "change"), rows)


def searched_table(comparison: TunedComparison) -> Table:
    """Return the searched settings of each method, with their number."""
    rows: list[Row] = []
    for method, (shared, own) in comparison.searched_settings().items():
        number = str(len(shared) + len(own))
        rows.append(Row((method, number, ", ".join(shared) or DASH, ", ".join(own) or DASH)))
    columns = ("method", "number", "shared with other methods", "its own")
    return Table("Searched settings", columns, rows, num_text_columns=4)


def selected_table(results: TunedResults) -> Table:
    """Return the selected settings that differ from the published ones."""
    rows: list[Row] = []
    for cell in results.cells.values():
        if cell.method not in results.untrained and cell.tuned:
            changes = ", ".join(f"{key} = {format_setting(value)}" for key, value in cell.changed.items())
            rows.append(Row((cell.dataset, cell.method, changes or "published settings")))
    return Table("Selected settings", ("dataset", "method", "changed settings"), rows, num_text_columns=3)


def print_tables(results: TunedResults, console: Console) -> None:
    """Print the tables of results and of ranks."""
    tables = [results_table(results)]
    ranks = ranks_table(results)
    if ranks is not None:
        tables.append(ranks)
    for table in tables:
        console.print(table.title)
        shown = TerminalTable(box=None, pad_edge=False)
        for number, name in enumerate(table.columns):
            is_text = number < table.num_text_columns
            shown.add_column(name, justify="left" if is_text else "right", overflow="fold")
        for row in table.rows:
            shown.add_row(*row.cells)
        console.print(shown)


def results_csv(results: TunedResults) -> str:
    """Return CSV with a line per dataset and method."""
    header = "dataset method n published tuned gain low high trials steps seconds selected missing"
    rows: list[Iterable[object]] = [header.split()]
    for cell in results.cells.values():
        interval = cell.interval
        row = (
            cell.dataset,
            cell.method,
            len(cell.gains),
            format_csv_number(cell.published_mean),
            format_csv_number(cell.tuned_mean),
            format_csv_number(cell.gain),
            format_csv_number(interval.low if interval else None),
            format_csv_number(interval.high if interval else None),
            cell.cost.trials,
            cell.cost.steps,
            f"{cell.cost.seconds:.1f}",
            _selected_name(cell),
            cell.missing,
        )
        rows.append(row)
    return csv_text(rows)


def _selected_name(cell: CellResult) -> str:
    """Return which settings the study selected, or "" if it has no result."""
    if cell.keeps_published:
        return "published"
    return "tuned" if cell.tuned else ""


def ranks_csv(results: TunedResults) -> str:
    """Return CSV with a line per method: average rank and mean score, before and after tuning."""
    rows: list[Iterable[object]] = [
        ("method", "rank_published", "rank_tuned", "mean_published", "mean_tuned")
    ]
    ranking = results.ranking
    if ranking is not None:
        for method in ranking.tuned.methods:
            row = (
                method,
                format_csv_number(ranking.published.ranks[method]),
                format_csv_number(ranking.tuned.ranks[method]),
                format_csv_number(ranking.published.means[method]),
                format_csv_number(ranking.tuned.means[method]),
            )
            rows.append(row)
    return csv_text(rows)
