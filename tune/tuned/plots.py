"""Plots of a tuned comparison: critical-difference diagrams, and a slope chart from published to tuned."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from markupsafe import Markup

from tune.records.timeline import TimelineEntry
from tune.report.plots import BLUE, DARK, GRAY, ORANGE, embed, escape, plot_timeline
from tune.tuned.ranking import Order, Ranking, indistinct_groups
from tune.tuned.results import TunedResults

_COLORS = (BLUE, ORANGE, "#2f855a", "#805ad5", "#b7791f", "#c53030", "#2c7a7b", DARK, "#b83280", GRAY)
_ROW_HEIGHT = 26  # of a label, in pixels
_MIN_LABEL_GAP = 0.055  # between labels of the slope chart, as a share of its height


def plots(results: TunedResults, timeline: Sequence[TimelineEntry]) -> dict[str, Markup]:
    """Return the plots of the page by name. Plots without data are omitted."""
    figures: dict[str, go.Figure] = {}
    ranking = results.ranking
    if ranking is not None:
        figures["ranks-published"] = plot_critical_difference(ranking.published, ranking)
        figures["ranks-tuned"] = plot_critical_difference(ranking.tuned, ranking)
        figures["slopes"] = plot_slopes(ranking.published.means, ranking.tuned.means)
    if timeline:
        figures["timeline"] = plot_timeline(timeline)
    return {name: embed(figure, name) for name, figure in figures.items()}


def plot_critical_difference(order: Order, ranking: Ranking) -> go.Figure:
    """Plot average ranks on an axis, best on the left. Bars join methods that do not differ significantly.

    The layout is that of Demsar (2006). Labels of the better half are on the left, others on the right.
    """
    methods = order.methods
    ranks = list(order.ranks.values())
    num_left = (len(methods) + 1) // 2  # as many rows, because the right side has at most as many labels
    groups = indistinct_groups(ranks, ranking.difference)
    first_row = 0.6 + 0.35 * len(groups)  # below the bars of the groups
    figure = go.Figure()
    for index, (method, rank) in enumerate(order.ranks.items()):
        is_left = index < num_left
        row = index if is_left else len(methods) - 1 - index
        depth = -(first_row + row)
        side = 0.7 if is_left else len(methods) + 0.3
        figure.add_scatter(
            x=[rank, rank, side],
            y=[0, depth, depth],
            mode="lines",
            line={"color": GRAY, "width": 1.2},
            hoverinfo="skip",
        )
        figure.add_annotation(
            x=side,
            y=depth,
            text=f"{escape(method)} {rank:.2f}",
            showarrow=False,
            xanchor="right" if is_left else "left",
            xshift=-4 if is_left else 4,
        )
    figure.add_scatter(
        x=ranks,
        y=[0] * len(ranks),
        mode="markers",
        marker={"color": BLUE, "size": 9},
        text=[escape(f"{method}: average rank {rank:.2f}") for method, rank in order.ranks.items()],
        hovertemplate="%{text}<extra></extra>",
    )
    for number, (first, last) in enumerate(groups):
        height = -(0.35 + 0.35 * number)
        figure.add_scatter(
            x=[ranks[first] - 0.03, ranks[last] + 0.03],
            y=[height, height],
            mode="lines",
            line={"color": DARK, "width": 5},
            hoverinfo="skip",
        )
    _add_scale(figure, len(methods), ranking.difference)
    figure.update_yaxes(visible=False, range=[-(first_row + num_left - 0.4), 1.9])
    figure.update_xaxes(visible=False, range=[-0.6, len(methods) + 1.6])
    height = 110 + int(_ROW_HEIGHT * (num_left + first_row))
    return figure.update_layout(showlegend=False, height=height)


def _add_scale(figure: go.Figure, num_methods: int, difference: float) -> None:
    """Add the axis of ranks, and above it the critical difference."""
    figure.add_scatter(
        x=[1, num_methods], y=[0, 0], mode="lines", line={"color": DARK, "width": 1.5}, hoverinfo="skip"
    )
    for rank in range(1, num_methods + 1):
        figure.add_annotation(x=rank, y=0, text=str(rank), showarrow=False, yshift=14, font={"color": DARK})
    shown = min(difference, num_methods - 1)
    figure.add_scatter(
        x=[1, 1 + shown], y=[1.3, 1.3], mode="lines", line={"color": ORANGE, "width": 3}, hoverinfo="skip"
    )
    more = "" if shown == difference else ", longer than the axis"
    figure.add_annotation(
        x=1,
        y=1.3,
        text=f"critical difference {difference:.2f}{more}",
        showarrow=False,
        xanchor="left",
        yshift=11,
        font={"color": ORANGE},
    )


def plot_slopes(published: Mapping[str, float], tuned: Mapping[str, float]) -> go.Figure:
    """Plot the mean score of each method at published settings and after tuning, joined by a line."""
    figure = go.Figure()
    colors = {method: _COLORS[number % len(_COLORS)] for number, method in enumerate(tuned)}
    for method, color in colors.items():
        figure.add_scatter(
            x=[0, 1],
            y=[published[method], tuned[method]],
            mode="lines+markers",
            line={"color": color, "width": 2},
            marker={"size": 8},
            text=[escape(method)] * 2,
            hovertemplate="%{text}: %{y:.2f}<extra></extra>",
        )
    gap = _MIN_LABEL_GAP * _height_of([*published.values(), *tuned.values()])
    for side, means in ((0, published), (1, tuned)):
        positions = spread_labels(means, gap)
        for method, position in positions.items():
            figure.add_annotation(
                x=side,
                y=position,
                text=f"{escape(method)} {means[method]:.1f}",
                font={"color": colors[method]},
                showarrow=False,
                xanchor="left" if side else "right",
                xshift=10 if side else -10,
            )
    figure.update_xaxes(
        tickvals=[0, 1], ticktext=["published settings", "tuned"], range=[-0.7, 1.7], showgrid=False
    )
    figure.update_yaxes(title="mean H over the datasets (%)")
    return figure.update_layout(showlegend=False, height=max(360, 120 + _ROW_HEIGHT * len(colors)))


def _height_of(values: Sequence[float]) -> float:
    height = max(values) - min(values)
    return height if height > 0 else 1.0  # equal values


def spread_labels(values: Mapping[str, float], gap: float) -> dict[str, float]:
    """Return a position per label, near its value and at least `gap` above the next lower one.

    Example:
        >>> spread_labels({"a": 1.0, "b": 1.0, "c": 5.0}, 1.0)
        {'a': 0.5, 'b': 1.5, 'c': 5.0}
    """
    clusters: list[tuple[list[str], float]] = []  # labels and their mean position
    for label, value in sorted(values.items(), key=lambda item: item[1]):
        clusters.append(([label], value))
        while len(clusters) > 1 and _overlap(clusters[-2], clusters[-1], gap):
            labels, center = clusters.pop()
            other_labels, other_center = clusters.pop()
            num_labels = len(labels)
            num_others = len(other_labels)
            mean = (num_labels * center + num_others * other_center) / (num_labels + num_others)
            clusters.append(([*other_labels, *labels], mean))
    return {
        label: center + gap * (number - (len(labels) - 1) / 2)
        for labels, center in clusters
        for number, label in enumerate(labels)
    }


def _overlap(lower: tuple[list[str], float], upper: tuple[list[str], float], gap: float) -> bool:
    top = lower[1] + gap * (len(lower[0]) - 1) / 2
    bottom = upper[1] - gap * (len(upper[0]) - 1) / 2
    return bottom - top < gap
