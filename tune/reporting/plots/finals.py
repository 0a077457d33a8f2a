"""Differences with their intervals, as a forest plot."""

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from prometar.metrics import Interval
from tune.reporting.plots.style import BEST, COLOURS, fragment, label, short


@dataclass(frozen=True)
class Row:
    """A line of the forest plot: its name, its interval, the single differences behind it."""

    name: str
    difference: Interval | None
    singles: tuple[float, ...] = ()
    total: bool = False


def forest(rows: Sequence[Row], *, title: str) -> str | None:
    """Differences with 95 % intervals around 0; None where no row has a difference.

    An interval that holds 0 is grey. Rows over all data sets are diamonds.
    """
    drawn = [row for row in rows if row.difference or row.singles]
    if not any(row.difference for row in drawn):
        return None
    figure = go.Figure()
    figure.add_vline(x=0, line={"color": "#4a5568", "width": 1.5})
    for place, row in enumerate(drawn):
        below = place + 0.25  # not behind the interval
        figure.add_scatter(
            x=list(row.singles), y=[below] * len(row.singles), mode="markers", hoverinfo="x",
            marker={"color": COLOURS["PRUNED"], "size": 6, "opacity": 0.55}, showlegend=False,
        )  # fmt: skip
        if row.difference:
            d = row.difference
            holds_0 = d.low <= 0 <= d.high
            colour = COLOURS["PRUNED"] if holds_0 else COLOURS["COMPLETE"] if d.mean > 0 else BEST
            figure.add_scatter(
                x=[d.mean], y=[place], mode="markers", hoverinfo="text", showlegend=False,
                hovertext=[label(f"{row.name}: {d.mean:+.2f} ({d.low:+.2f} to {d.high:+.2f})")],
                error_x={
                    "type": "data", "symmetric": False, "array": [d.high - d.mean],
                    "arrayminus": [d.mean - d.low], "color": colour, "thickness": 2.5, "width": 6,
                },
                marker={"color": colour, "size": 12, "symbol": "diamond" if row.total else "square"},
            )  # fmt: skip
    figure.update_yaxes(
        tickvals=list(range(len(drawn))), ticktext=[label(short(row.name)) for row in drawn],
        range=[len(drawn) - 0.4, -0.6], showgrid=False,
    )  # fmt: skip
    return fragment(figure, "forest", x=title, y="", height=110 + 44 * len(drawn))
