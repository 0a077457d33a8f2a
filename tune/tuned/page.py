"""report.html of a tuned comparison: a single file that works offline."""

from collections.abc import Sequence
from pathlib import Path

from plotly.offline import get_plotlyjs

from prometar.environment import environment
from prometar.io.files import write_atomically
from tune.records.timeline import TimelineEntry
from tune.report.page import render_template
from tune.tuned.comparison import TunedComparison
from tune.tuned.plots import plots
from tune.tuned.results import TunedResults
from tune.tuned.statements import answer, evidence, limits
from tune.tuned.tables import ranks_table, results_table, searched_table, selected_table


def write_page(
    comparison: TunedComparison,
    results: TunedResults,
    problems: Sequence[str],
    timeline: Sequence[TimelineEntry],
) -> Path:
    """Write OUT/tuned/report.html. Return its path.

    Raises:
        InfrastructureError: the disk is full or the folder is not writable.
    """
    path = comparison.folder / "report.html"
    html = render_template(
        "tuned.html.jinja",
        plotly_js=get_plotlyjs(),
        comparison=comparison,
        answer=answer(results.ranking),
        evidence=list(evidence(results.ranking)),
        limits=list(limits(comparison, results)),
        problems=problems,
        plots=plots(results, timeline),
        results_table=results_table(results),
        ranks_table=ranks_table(results),
        searched_table=searched_table(comparison),
        selected_table=selected_table(results),
        environment=environment(),
    )
    write_atomically(path, html.encode())
    return path
