"""The settings: how much each matters, and where the good values are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from tune.reporting.plots.style import (
    COLOURS,
    EDGE,
    LINES,
    SCALE,
    decades,
    figures,
    fragment,
    hover,
    label,
    log_ticks,
    mark,
    padded,
    released_of,
    short,
)
from tune.results.reader import Records
from tune.results.schema import TrialRecord
from tune.space.point_sets import levels
from tune.space.spaces import Choice, Numbers, Range

_GRID = 40  # cells of the interpolated surface, a side
_ABSENT = -0.14  # where parallel coordinates show a setting that was not drawn, in unit coordinates


def importance(shares: Mapping[str, float]) -> str | None:
    """Bars of the settings' shares; None where there are none."""
    if not any(shares.values()):
        return None
    keys = sorted(shares, key=lambda key: shares[key])
    figure = go.Figure(
        go.Bar(
            x=[shares[key] for key in keys],
            y=list(range(len(keys))),
            orientation="h",
            marker={"color": COLOURS["COMPLETE"]},
            text=[f"{shares[key]:.0%}" for key in keys],
            textposition="outside",
            cliponaxis=False,
            hoverinfo="skip",
        )
    )
    figure.update_xaxes(tickformat=".0%", range=[0, max(shares.values()) * 1.15])
    figure.update_yaxes(
        tickvals=list(range(len(keys))), ticktext=[label(short(key, 28)) for key in keys], showgrid=False
    )
    return fragment(figure, "importance", x="share", y="", height=90 + 26 * len(keys))


def slices(records: Records) -> list[str]:
    """Objective of the finished trials against each setting, a panel a setting.

    Panels are figures of their own, so that a narrow page can put them below each other.
    """
    done = records.complete
    if len(done) < 2:
        return []
    y_range = padded(figures(done))
    panels = []
    for place, (key, entry) in enumerate(records.ranges.items()):
        group = [t for t in done if key in t.settings]
        if not group:
            continue
        figure = go.Figure()
        figure.add_scatter(
            x=[_position(t, key, entry) for t in group], y=figures(group), mode="markers",
            marker={"color": COLOURS["COMPLETE"], "size": 7, "opacity": 0.6, "line": EDGE}, showlegend=False,
            hoverinfo="text",
            hovertext=[
                label(f"trial {t.number}, {short(t.settings[key], 60)}: {t.objective:.2f}")
                for t in group
            ],
        )  # fmt: skip
        for trial in (released_of(group), records.chosen):
            if trial and key in trial.settings:
                name = "released" if trial.reference else "best"
                mark(figure, trial, name, _position(trial, key, entry), trial.objective, showlegend=False)
        figure.update_xaxes(**_axis(entry))
        figure.update_yaxes(range=y_range)
        some = "" if len(group) == len(done) else f"<br>in {len(group)} of {len(done)} trials"
        figure.update_xaxes(title=f"{label(short(key, 34))}{some}")
        figure.update_xaxes(title_standoff=12)
        margin = {"l": 56, "r": 14, "t": 10, "b": 62}
        y = f"{records.score} (%)"
        panels.append(fragment(figure, f"slice-{place}", x="", y=y, height=250, margin=margin))
    return panels


def contour(records: Records, keys: tuple[str, str]) -> str | None:
    """Objective over two numeric settings: the finished trials, and a surface interpolated between them.

    None where no trial has both, because each is there only where the other is not.

    The surface is their inverse-distance weighted mean in unit coordinates (logarithms where the range has
    them): a guide for the eye, for all other settings vary too.
    """
    ranges, done = records.ranges, [t for t in records.complete if all(key in t.settings for key in keys)]
    if not done:
        return None
    spots = [[ranges[key].unit(t.settings[key]) for key in keys] for t in done]
    values = figures(done)
    grid = np.linspace(0.0, 1.0, _GRID)
    weighted, total = np.zeros((_GRID, _GRID)), np.zeros((_GRID, _GRID))
    for (x, y), value in zip(spots, values, strict=True):
        squares = (grid[None, :] - x) ** 2 + (grid[:, None] - y) ** 2
        weights = (squares + 1e-4) ** -1.5  # the constant keeps a single trial from being a spike
        weighted, total = weighted + weights * value, total + weights
    surface = weighted / total
    x_key, y_key = keys
    x_range, y_range = ranges[x_key], ranges[y_key]
    assert isinstance(x_range, Numbers)
    assert isinstance(y_range, Numbers)
    figure = go.Figure(
        go.Contour(
            x=[x_range.between(u) for u in grid], y=[y_range.between(u) for u in grid],
            z=surface.round(3).tolist(), colorscale=SCALE, hoverinfo="skip", ncontours=12,
            zmin=min(values), zmax=max(values), line={"width": 0.5, "color": "white"},
            showscale=False, opacity=0.6,
        )
    )  # fmt: skip
    figure.add_scatter(
        x=[t.settings[x_key] for t in done], y=[t.settings[y_key] for t in done], mode="markers",
        marker={
            "color": values, "colorscale": SCALE, "cmin": min(values),
            "cmax": max(values), "size": 11, "line": {"color": "#1f2933", "width": 1},
            "colorbar": {"title": {"text": label(records.score)}, "thickness": 12, "outlinewidth": 0},
        },
        hoverinfo="text", hovertext=[hover(t) for t in done], showlegend=False,
    )  # fmt: skip
    for axis, key in ((figure.update_xaxes, x_key), (figure.update_yaxes, y_key)):
        axis(showgrid=False, **_axis(ranges[key]))
    return fragment(figure, "contour", x=x_key, y=y_key, height=460)


def parallel(records: Records) -> str | None:
    """A line a finished trial through all its settings to its objective; None for fewer than two trials."""
    done = records.complete
    if len(done) < 2:
        return None
    values = figures(done)
    dimensions = [_dimension(done, key, entry) for key, entry in records.ranges.items()]
    low, high = min(values), max(values)
    margin = 0 if high > low else 1
    ticks = [low - margin + (high - low + 2 * margin) * i / 5 for i in range(6)]
    dimensions.append(
        {
            "label": records.score, "values": values, "range": [ticks[0], ticks[-1]],
            "tickvals": ticks,
            "ticktext": [f"{tick:.1f}" for tick in ticks],
        }
    )  # fmt: skip
    figure = go.Figure(
        go.Parcoords(
            dimensions=dimensions,
            line={"color": values, "colorscale": LINES, "cmin": low - margin, "cmax": high + margin},
            labelangle=-14, labelside="bottom", unselected={"line": {"opacity": 0.05}},
        )
    )  # fmt: skip
    margin_px = {"l": 110, "r": 60, "t": 24, "b": 64}
    return fragment(figure, "parallel", x="", y="", height=430, margin=margin_px)


def _dimension(done: Sequence[TrialRecord], key: str, entry: Range) -> dict[str, Any]:
    """An axis in unit coordinates, so that a setting that was not drawn has a place below all values."""
    ticks = decades(entry.low, entry.high) if isinstance(entry, Numbers) and entry.log else levels(entry)
    places = [entry.unit(tick) for tick in ticks]
    texts = [short(tick, 18) for tick in ticks]
    absent = any(key not in t.settings for t in done)
    if absent:
        places, texts = [_ABSENT, *places], ["not set", *texts]
    return {
        "label": short(key, 26),
        "values": [entry.unit(t.settings[key]) if key in t.settings else _ABSENT for t in done],
        "range": [_ABSENT if absent else 0.0, 1.0],
        "tickvals": places,
        "ticktext": texts,
    }


def _position(trial: TrialRecord, key: str, entry: Range) -> Any:
    """Where a value stands on its panel's axis; choices are spread a little, so that trials stay apart."""
    value = trial.settings[key]
    if not isinstance(entry, Choice):
        return value
    choices = list(entry.choices)
    place = choices.index(value) if value in choices else len(choices)
    return place + (trial.number * 0.618 % 1 - 0.5) * 0.4


def _axis(entry: Range) -> dict[str, Any]:
    """What tells an axis of these values from plotly's own."""
    if not isinstance(entry, Choice):
        return log_ticks(entry.low, entry.high) if entry.log else {}
    ticks, texts = list(range(len(entry.choices))), [label(short(each, 14)) for each in entry.choices]
    return {"tickvals": ticks, "ticktext": texts, "range": [-0.5, len(ticks) - 0.5]}
