"""What all plots share: colours, labels, axes, and how a figure becomes a piece of a page."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.io import to_html
from plotly.offline import get_plotlyjs

from tune.reporting.formatting import setting
from tune.results.goals import Goal
from tune.results.schema import TrialRecord

BEST, RELEASED, FAILED = "#c05621", "#2d3748", "#c53030"
COLOURS = {"COMPLETE": "#2b6cb0", "PRUNED": "#7b8794", "FAIL": FAILED}
STATES = {"COMPLETE": "finished", "PRUNED": "pruned"}
SCALE = [[0.0, "#dbe9f6"], [0.35, "#9ecae1"], [0.7, "#3182bd"], [1.0, "#08306b"]]  # more is darker
LINES = [[0.0, "#c3d7ea"], [0.5, "#6ba3d0"], [1.0, "#08306b"]]  # the same for thin lines
EDGE = {"color": "white", "width": 1}
_GRID = "#e6eaef"
_AXIS = {
    "gridcolor": _GRID,
    "linecolor": "#a3adba",
    "zeroline": False,
    "ticks": "outside",
    "tickcolor": _GRID,
}
_LAYOUT: dict[str, Any] = {
    "template": {},
    "hovermode": "closest",
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#2d3748"},
    "paper_bgcolor": "white",
    "plot_bgcolor": "white",
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    "hoverlabel": {"align": "left", "bgcolor": "white"},
}


def library() -> str:
    """plotly.js itself, to be put in the page once."""
    return get_plotlyjs()


def figures(trials: Sequence[TrialRecord], goal: Goal = "objective") -> list[float]:
    """Their figures; they must all have one."""
    found = [t.goal(goal) for t in trials]
    known = [figure for figure in found if figure is not None]
    assert len(known) == len(found), goal
    return known


def released_of(trials: Sequence[TrialRecord]) -> TrialRecord | None:
    return next((t for t in trials if t.reference and t.score is not None), None)


def label(text: Any) -> str:
    """Plotly reads labels as HTML; it knows no entity for quotes, and needs none."""
    return html.escape(str(text), quote=False)


def short(text: Any, most: int = 24) -> str:
    """
    Example:
        >>> short(0.000123456), short("a" * 9, 5)
        ('0.0001235', 'aaaa…')
    """
    whole = setting(text)
    return whole if len(whole) <= most else f"{whole[: most - 1]}…"


def hover(trial: TrialRecord) -> str:
    """All of a trial, for the box at the pointer."""
    lines = [f"trial {trial.number}" + (f", {trial.objective:.2f}" if trial.objective is not None else "")]
    lines += [f"{key}: {short(value, 80)}" for key, value in trial.settings.items()]
    return "<br>".join(label(line) for line in lines)


def points(
    figure: go.Figure, trials: list[TrialRecord], title: str, x: list, y: list, state: str, **more: Any
) -> None:
    """Trials of one state as a trace."""
    if not trials:
        return
    marker = {
        "color": COLOURS[state], "size": 9, "symbol": "x" if state == "PRUNED" else "circle", "line": EDGE
    }  # fmt: skip
    figure.add_scatter(
        x=x, y=y, mode="markers", name=title, marker=marker, hoverinfo="text",
        hovertext=[hover(t) for t in trials], **more,
    )  # fmt: skip


def mark(figure: go.Figure, trial: TrialRecord, title: str, x: Any, y: Any, **more: Any) -> None:
    """One trial above the others: the released settings as an open diamond, any other as a star."""
    released = trial.reference
    marker = {
        "symbol": "diamond-open" if released else "star",
        "size": 14,
        "color": RELEASED if released else BEST,
        "line": {"color": RELEASED, "width": 2} if released else EDGE,
    }
    figure.add_scatter(
        x=[x], y=[y], mode="markers", name=title, marker=marker, hoverinfo="text",
        hovertext=[f"{title}: {hover(trial)}"], **more,
    )  # fmt: skip


def padded(values: Sequence[float]) -> list[float]:
    margin = max(1.0, 0.08 * (max(values) - min(values)))
    return [min(values) - margin, max(values) + margin]


def decades(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis: its ends, and the powers of ten that are well inside.

    Example:
        >>> decades(0.5, 200.0)
        [0.5, 1.0, 10.0, 100.0, 200.0]
    """
    gap = 0.1 * (math.log10(high) - math.log10(low))
    powers = [10.0**p for p in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    inside = [p for p in powers if math.log10(p / low) > gap and math.log10(high / p) > gap]
    return [low, *inside, high]


def log_ticks(low: float, high: float) -> dict[str, Any]:
    """A logarithmic axis with plain numbers at its powers of ten, not metric prefixes."""
    powers = [10.0**p for p in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    return {"type": "log", "tickvals": powers, "ticktext": [setting(p) for p in powers]}


def fragment(
    figure: go.Figure,
    name: str,
    *,
    x: str,
    y: str,
    height: int = 400,
    whole_x: bool = False,
    margin: Mapping[str, int] | None = None,
) -> str:
    """The figure as a piece of a page that holds plotly.js already; axis titles are escaped here.

    Margins grow with the labels unless they are given.
    """
    drawn = figure.to_dict()  # what all plots share is merged in: plotly.py takes ten times as long to set it
    layout = drawn["layout"]
    for axis, title, more in (("xaxis", x, {"dtick": 1} if whole_x else {}), ("yaxis", y, {})):
        layout.setdefault(axis, {})
        for each in (held for key, held in layout.items() if key.startswith(axis)):
            each |= _AXIS | {"automargin": margin is None} | more
            if title:
                each["title"] = each.get("title", {}) | {"text": label(title)}
    traces = sum(trace.get("showlegend", True) for trace in drawn["data"])
    layout |= _LAYOUT | {
        "height": height,
        "margin": margin or {"l": 60, "r": 24, "t": 36, "b": 50},
        "showlegend": traces > 1,
    }
    return to_html(
        drawn, full_html=False, include_plotlyjs=False, div_id=f"plot-{name}", default_width="100%",
        default_height=f"{height}px", config={"displayModeBar": False, "responsive": True}, validate=False,
    )  # fmt: skip
