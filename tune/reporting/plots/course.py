"""How the search went: trial by trial, and epoch by epoch."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tune.reporting.plots.style import (
    BEST,
    COLOURS,
    RELEASED,
    STATES,
    figures,
    fragment,
    label,
    points,
    released_of,
)
from tune.results.goals import keeps
from tune.results.reader import Records
from tune.results.schema import TrialRecord


def history(records: Records) -> str:
    """Each goal by trial number, with the best so far (which keep the bounds) and the released settings."""
    trials, goals, bounds = records.trials, records.asked.goals, records.asked.bounds
    figure = make_subplots(rows=len(goals), cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for row, goal in enumerate(goals, start=1):
        place = {"row": row, "col": 1}
        for state, name in STATES.items():
            group = [t for t in trials if t.state == state and t.goal(goal) is not None]
            x, y = [t.number for t in group], figures(group, goal)
            points(figure, group, name, x, y, state, legendgroup=state, showlegend=row == 1, **place)
        done = [t for t in records.complete if t.goal(goal) is not None and keeps(bounds, t.goal)]
        if done:
            pick = min if goal == "seconds" else max
            values = figures(done, goal)
            best = [pick(values[: i + 1]) for i in range(len(done))]
            last = max(t.number for t in trials)
            figure.add_scatter(
                x=[*(t.number for t in done), last], y=[*best, best[-1]], mode="lines",
                name="best so far", line={"color": BEST, "shape": "hv", "width": 2}, hoverinfo="skip",
                legendgroup="best", showlegend=row == 1, **place,
            )  # fmt: skip
        released = released_of(trials)
        if released and released.goal(goal) is not None:
            figure.add_hline(
                y=released.goal(goal), line={"color": RELEASED, "dash": "dash", "width": 1.5},
                annotation={"text": "released", "font": {"color": RELEASED}},
                annotation_position="bottom right", **place,
            )  # fmt: skip
        figure.update_yaxes(title=label(records.goal_title(goal)), **place)
    figure.update_xaxes(title="trial", row=len(goals), col=1)
    return fragment(figure, "history", x="", y="", height=120 + 280 * len(goals), whole_x=len(trials) < 20)


def curves(records: Records) -> str | None:
    """Objective by epoch, a line a trial; a pruned one ends in a cross. None where no epoch was reported."""
    told, best = [t for t in records.trials if t.epochs], records.chosen
    if not told:
        return None
    figure = go.Figure()
    marked = {best.number if best else None, *(t.number for t in told if t.reference)}
    for state, title in {**STATES, "FAIL": "failed"}.items():
        group = [t for t in told if t.state == state and t.number not in marked]
        _lines(figure, group, title, {"color": COLOURS[state], "width": 1.2}, opacity=0.65)
    released = [t for t in told if t.reference]
    _lines(figure, released, "released", {"color": RELEASED, "dash": "dash", "width": 2.5})
    if best and best.epochs and not best.reference:
        _lines(figure, [best], f"best (trial {best.number})", {"color": BEST, "width": 2.5})
    most = max(epoch.epoch for t in told for epoch in t.epochs)
    return fragment(figure, "curves", x="epoch", y=f"{records.score} (%)", whole_x=most < 20)


def _lines(
    figure: go.Figure, trials: list[TrialRecord], title: str, line: dict, *, opacity: float = 1.0
) -> None:
    """One trace for all of them: the curves are kept apart by gaps."""
    if not trials:
        return
    rows: list[tuple[int | None, float | None, str, int, str]] = []
    for trial in trials:
        for epoch in trial.epochs:
            text = f"trial {trial.number}, epoch {epoch.epoch}: {epoch.objective:.2f}"
            rows.append((epoch.epoch, epoch.objective, text, 4, "circle"))
        if trial.state == "PRUNED":
            rows[-1] = (*rows[-1][:3], 8, "x")
        rows.append((None, None, "", 0, "circle"))
    x, y, texts, sizes, symbols = zip(*rows, strict=True)
    marker = {"size": sizes, "symbol": symbols, "color": line["color"], "line_width": 0}
    figure.add_scatter(
        x=x, y=y, mode="lines+markers", name=title, line=line, opacity=opacity, marker=marker,
        hoverinfo="text", hovertext=texts,
    )  # fmt: skip
