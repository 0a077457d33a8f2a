"""Page with the gradient alignment along runs."""

from collections.abc import Mapping, Sequence
from html import escape

import plotly.graph_objects as go
from plotly.colors import qualitative

from prometar.analysis.alignment import Record


def page(runs: Mapping[str, Sequence[Record]]) -> str:
    """Return an HTML page: each run's cosines by step, and their means by epoch."""
    figure = go.Figure()
    colours = qualitative.Plotly
    for number, (name, records) in enumerate(runs.items()):
        colour = colours[number % len(colours)]
        steps, cosines = [r["step"] for r in records], [r["cosine"] for r in records]
        points = {"color": colour, "size": 4, "opacity": 0.4}
        figure.add_scatter(x=steps, y=cosines, mode="markers", marker=points, showlegend=False)
        line = _by_epoch(records)
        figure.add_scatter(**line, mode="lines+markers", line={"color": colour}, name=escape(name))
    figure.update_layout(
        template="plotly_white",
        title="Gradient alignment: cosine of the modulated support gradient and the query gradient",
        xaxis_title="step",
        yaxis={"title": "cosine", "range": [-1, 1], "zeroline": True},
        legend={"orientation": "h", "y": -0.2},
    )
    return str(figure.to_html(include_plotlyjs=True, full_html=True))


def _by_epoch(records: Sequence[Record]) -> dict[str, list[float]]:
    epochs: dict[float, list[Record]] = {}
    for record in records:
        epochs.setdefault(record["epoch"], []).append(record)
    return {
        "x": [sum(r["step"] for r in group) / len(group) for group in epochs.values()],
        "y": [sum(r["cosine"] for r in group) / len(group) for group in epochs.values()],
    }
