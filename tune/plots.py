"""The report's plots: HTML fragments made from trial records; Optuna judges the settings' importance."""

from __future__ import annotations

import html
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState, create_trial
from plotly.offline import get_plotlyjs

Record = Mapping[str, Any]  # trials/NNNN/record.json

MIN_COMPLETE = 8  # finished trials, below which importances are noise
TOP = 0.25  # share of the finished trials that counts as good; PED-ANOVA's usual 0.1 is one trial of ten
_COLOURS = {"COMPLETE": "#2b6cb0", "PRUNED": "#7b8794", "RUNNING": "#d69e2e"}
_BEST, _RELEASED, _GRID = "#c05621", "#2d3748", "#e6eaef"
_EDGE = {"color": "white", "width": 1}
_STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "RUNNING": "running"}


def library() -> str:
    """plotly.js itself, to be put in the page once."""
    return get_plotlyjs()


def history(trials: Sequence[Record], *, score: str) -> str:
    """Objective by trial number, with the best so far and the released settings as lines."""
    figure = go.Figure()
    for state, title in _STATES.items():
        points = [t for t in trials if t["state"] == state and t["objective"] is not None]
        _points(figure, points, title, [t["number"] for t in points], [t["objective"] for t in points], state)
    complete = _complete(trials)
    if complete:
        highest = [max(t["objective"] for t in complete[: i + 1]) for i in range(len(complete))]
        last = max(t["number"] for t in trials)
        figure.add_scatter(
            x=[*(t["number"] for t in complete), last], y=[*highest, highest[-1]], mode="lines",
            name="best so far", line={"color": _BEST, "shape": "hv", "width": 2}, hoverinfo="skip",
        )  # fmt: skip
    released = _released(trials)
    if released:
        figure.add_hline(
            y=released["objective"], line={"color": _RELEASED, "dash": "dash", "width": 1.5},
            annotation={"text": "released", "font": {"color": _RELEASED}}, annotation_position="bottom right",
        )  # fmt: skip
    return _fragment(figure, "history", x="trial", y=_text(f"{score} (%)"), whole_x=len(trials) < 20)


def trade_off(trials: Sequence[Record], best: Record | None) -> str | None:
    """Accuracy on base against new classes; None where no trial has both."""
    both = [t for t in trials if t["base"] is not None and t["new"] is not None]
    if not both:
        return None
    figure = go.Figure()
    for level in _levels(both):
        _equal_h(figure, level, both)
    for state, title in _STATES.items():
        points = [t for t in both if t["state"] == state]
        _points(figure, points, title, [t["base"] for t in points], [t["new"] for t in points], state)
    for trial, title, symbol, colour, edge in (
        (_released(both), "released", "diamond-open", _RELEASED, {"color": _RELEASED, "width": 2}),
        (best, "best", "star", _BEST, _EDGE),
    ):
        if trial and trial["base"] is not None and trial["new"] is not None:
            figure.add_scatter(
                x=[trial["base"]], y=[trial["new"]], mode="markers", name=title, hoverinfo="text",
                hovertext=[_hover(trial)],
                marker={"symbol": symbol, "size": 15, "color": colour, "line": edge},
            )  # fmt: skip
    x_range, y_range = _padded([t["base"] for t in both]), _padded([t["new"] for t in both])
    figure.update_xaxes(range=x_range)
    figure.update_yaxes(range=y_range)
    return _fragment(figure, "trade-off", x="base classes (%)", y="new classes (%)")


def curves(trials: Sequence[Record], best: Record | None, *, score: str) -> str | None:
    """Objective by epoch, a line a trial; a pruned one ends in a cross. None where no epoch was reported."""
    told = [t for t in trials if t["epochs"]]
    if not told:
        return None
    figure = go.Figure()
    marked = {best["number"] if best else None, *(t["number"] for t in told if t["reference"])}
    for state, title in {**_STATES, "FAIL": "failed"}.items():
        group = [t for t in told if t["state"] == state and t["number"] not in marked]
        _lines(figure, group, title, {"color": _COLOURS.get(state, "#c53030"), "width": 1.2}, opacity=0.65)
    released = [t for t in told if t["reference"]]
    _lines(figure, released, "released", {"color": _RELEASED, "dash": "dash", "width": 2.5})
    if best and best["epochs"] and not best["reference"]:
        _lines(figure, [best], f"best (trial {best['number']})", {"color": _BEST, "width": 2.5})
    most = max(epoch["epoch"] for t in told for epoch in t["epochs"])
    return _fragment(figure, "curves", x="epoch", y=_text(f"{score} (%)"), whole_x=most < 20)


def importance(trials: Sequence[Record], ranges: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Share of each setting in what sets good trials apart; None where it cannot be told."""
    shares = importances(trials, ranges)
    if not any(shares.values()):
        return None
    keys = sorted(shares, key=lambda key: shares[key])
    figure = go.Figure(
        go.Bar(
            x=[shares[key] for key in keys],
            y=[_text(key) for key in keys],
            orientation="h",
            marker={"color": _COLOURS["COMPLETE"]},
            text=[f"{shares[key]:.0%}" for key in keys],
            textposition="outside",
            cliponaxis=False,
            hoverinfo="skip",
        )
    )
    figure.update_xaxes(tickformat=".0%", range=[0, max(shares.values()) * 1.12])
    figure.update_yaxes(type="category", showgrid=False)
    return _fragment(figure, "importance", x="share", y="", height=90 + 26 * len(keys))


def importances(trials: Sequence[Record], ranges: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Importance of each setting by PED-ANOVA, scaled to sum 1; all 0 where it sees no difference.

    How far the settings of the best quarter of the finished trials are from those of all finished trials.
    Source: Watanabe et al., PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary
    Subspaces, IJCAI 2023; as `optuna.importance.PedAnovaImportanceEvaluator`.
    """
    complete = _complete(trials)
    if len(complete) < MIN_COMPLETE:
        return dict.fromkeys(ranges, 0.0)
    distributions = {key: _distribution(entry) for key, entry in ranges.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says that importances are equal where trials are; so do we
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(direction="maximize")
        study.add_trials([_frozen(trial, distributions) for trial in complete])
        raw = PedAnovaImportanceEvaluator(target_quantile=TOP).evaluate(study)
    total = sum(raw.values())
    return {key: float(raw.get(key, 0.0) / total) if total else 0.0 for key in ranges}


def _distribution(entry: Mapping[str, Any]) -> BaseDistribution:
    if entry["type"] == "choice":
        return CategoricalDistribution(tuple(entry["choices"]))
    kind = FloatDistribution if entry["type"] == "float" else IntDistribution
    return kind(entry["low"], entry["high"], log=bool(entry.get("log")))


def _frozen(trial: Record, distributions: Mapping[str, BaseDistribution]) -> FrozenTrial:
    known = {key: value for key, value in trial["settings"].items() if key in distributions}
    return create_trial(
        state=TrialState.COMPLETE,
        value=trial["objective"],
        params=known,
        distributions={key: distributions[key] for key in known},
    )


def _complete(trials: Sequence[Record]) -> list[Record]:
    return [t for t in trials if t["state"] == "COMPLETE" and t["objective"] is not None]


def _released(trials: Sequence[Record]) -> Record | None:
    return next((t for t in _complete(trials) if t["reference"]), None)


def _points(figure: go.Figure, trials: list[Record], title: str, x: list, y: list, state: str) -> None:
    if not trials:
        return
    marker = {"color": _COLOURS[state], "size": 9, "symbol": _symbol(state), "line": _EDGE}
    figure.add_scatter(
        x=x, y=y, mode="markers", name=title, marker=marker, hoverinfo="text",
        hovertext=[_hover(t) for t in trials],
    )  # fmt: skip


def _lines(figure: go.Figure, trials: list[Record], title: str, line: dict, *, opacity: float = 1.0) -> None:
    """One trace for all of them: the curves are kept apart by gaps."""
    if not trials:
        return
    points: list[tuple[int | None, float | None, str, int, str]] = []
    for trial in trials:
        for epoch in trial["epochs"]:
            text = f"trial {trial['number']}, epoch {epoch['epoch']}: {epoch['objective']:.2f}"
            points.append((epoch["epoch"], epoch["objective"], text, 4, "circle"))
        if trial["state"] == "PRUNED":
            points[-1] = (*points[-1][:3], 8, _symbol("PRUNED"))
        points.append((None, None, "", 0, "circle"))
    x, y, texts, sizes, symbols = zip(*points, strict=True)
    marker = {"size": sizes, "symbol": symbols, "color": line["color"], "line_width": 0}
    figure.add_scatter(
        x=x, y=y, mode="lines+markers", name=title, line=line, opacity=opacity, marker=marker,
        hoverinfo="text", hovertext=texts,
    )  # fmt: skip


def _symbol(state: str) -> str:
    return "x" if state == "PRUNED" else "circle"


def _equal_h(figure: go.Figure, level: float, trials: list[Record]) -> None:
    """The line of equal harmonic mean: new = H base / (2 base - H)."""
    low, high = _padded([t["base"] for t in trials])
    bases = [low + (high - low) * i / 60 for i in range(61)]
    bases = [base for base in bases if 2 * base - level > 1e-6]
    figure.add_scatter(
        x=bases, y=[level * base / (2 * base - level) for base in bases], mode="lines", hoverinfo="skip",
        line={"color": "#cbd5e0", "dash": "dot", "width": 1}, name="equal H", legendgroup="equal H",
        showlegend=not any(trace.name == "equal H" for trace in figure.data),
    )  # fmt: skip


def _levels(trials: list[Record]) -> list[float]:
    means = [2 * t["base"] * t["new"] / (t["base"] + t["new"]) for t in trials if t["base"] + t["new"] > 0]
    step = 5.0 if max(means, default=0) - min(means, default=0) < 30 else 10.0
    return sorted({step * round(mean / step) for mean in means} - {0.0})


def _padded(values: list[float]) -> list[float]:
    margin = max(1.0, 0.08 * (max(values) - min(values)))
    return [min(values) - margin, max(values) + margin]


def _hover(trial: Record) -> str:
    lines = [f"trial {trial['number']}, {trial['objective']:.2f}" if trial["objective"] is not None else ""]
    lines += [f"{key}: {_short(value)}" for key, value in trial["settings"].items()]
    return "<br>".join(_text(line) for line in lines)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:80]


def _text(text: str) -> str:
    """Plotly reads labels as HTML; it knows no entity for quotes, and needs none."""
    return html.escape(text, quote=False)


def _fragment(
    figure: go.Figure, name: str, *, x: str, y: str, height: int = 400, whole_x: bool = False
) -> str:
    axis = {
        "gridcolor": _GRID,
        "linecolor": "#a3adba",
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": _GRID,
    }
    figure.update_xaxes(title=x, automargin=True, **axis, **({"dtick": 1} if whole_x else {}))
    figure.update_yaxes(title=y, automargin=True, **axis)
    figure.update_layout(
        template="none", height=height, margin={"l": 60, "r": 30, "t": 36, "b": 50}, hovermode="closest",
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#2d3748"}, paper_bgcolor="white",
        plot_bgcolor="white", legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hoverlabel={"align": "left", "bgcolor": "white"}, showlegend=len(figure.data) > 1,
    )  # fmt: skip
    return figure.to_html(
        full_html=False, include_plotlyjs=False, div_id=f"plot-{name}", default_width="100%",
        default_height=f"{height}px", config={"displayModeBar": False, "responsive": True},
    )  # fmt: skip
