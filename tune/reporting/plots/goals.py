"""One figure against another: base and new accuracy, and the front of a search with two goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from tune.reporting.plots.style import COLOURS, STATES, Trial, fragment, mark, padded, points, released_of


def trade_off(trials: Sequence[Trial], best: Trial | None, titles: Mapping[str, str]) -> str | None:
    """Accuracy on base against new classes; None where no trial has both."""
    both = [t for t in trials if t["base"] is not None and t["new"] is not None]
    if not both:
        return None
    figure = go.Figure()
    _equal_h(figure, both)
    for state, title in STATES.items():
        group = [t for t in both if t["state"] == state]
        points(figure, group, title, [t["base"] for t in group], [t["new"] for t in group], state)
    _marks(figure, both, best, "base", "new")
    figure.update_xaxes(range=padded([t["base"] for t in both]))
    figure.update_yaxes(range=padded([t["new"] for t in both]))
    return fragment(figure, "trade-off", x=titles["base"], y=titles["new"], height=440)


def front(
    trials: Sequence[Trial], front: Sequence[Trial], best: Trial | None, goals: Mapping[str, str]
) -> str | None:
    """Both goals of the finished trials, the front joined; None where no trial has both.

    Args:
        front: The trials that none beats in both goals, by the first. goals: Two records' keys and titles.
    """
    if not front:
        return None
    first, second = goals
    on_front = {t["number"] for t in front}
    others = [
        t
        for t in trials
        if t["state"] == "COMPLETE" and None not in (t[first], t[second]) and t["number"] not in on_front
    ]
    figure = go.Figure()
    if set(goals) == {"base", "new"}:
        _equal_h(figure, [*front, *others], swapped=first == "new")
    points(
        figure, others, "another is better in both", [t[first] for t in others], [t[second] for t in others],
        "COMPLETE", opacity=0.3,
    )  # fmt: skip
    figure.add_scatter(
        x=[t[first] for t in front], y=[t[second] for t in front], mode="lines", name="front", opacity=0.8,
        line={"color": COLOURS["COMPLETE"], "width": 1.5}, hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    points(figure, list(front), "front", [t[first] for t in front], [t[second] for t in front], "COMPLETE")
    _marks(figure, [*front, *others], best, first, second)
    x, y = goals.values()
    return fragment(figure, "front", x=x, y=y, height=440)


def _marks(figure: go.Figure, trials: Sequence[Trial], best: Trial | None, x: str, y: str) -> None:
    released = released_of(trials)
    if released:
        mark(figure, released, "released", released[x], released[y])
    if best and not best["reference"] and None not in (best[x], best[y]):
        mark(figure, best, "best", best[x], best[y])


def _equal_h(figure: go.Figure, trials: Sequence[Trial], *, swapped: bool = False) -> None:
    """Lines of equal harmonic mean: new = H base / (2 base - H), the same with base and new swapped."""
    low, high = padded([t["new" if swapped else "base"] for t in trials])
    for count, level in enumerate(_levels(trials)):
        bases = [low + (high - low) * i / 60 for i in range(61)]
        bases = [base for base in bases if 2 * base - level > 1e-6]
        figure.add_scatter(
            x=bases, y=[level * base / (2 * base - level) for base in bases], mode="lines",
            hoverinfo="skip", line={"color": "#cbd5e0", "dash": "dot", "width": 1}, name="equal H",
            legendgroup="equal H", showlegend=count == 0,
        )  # fmt: skip
    x, y = ("new", "base") if swapped else ("base", "new")
    figure.update_xaxes(range=padded([t[x] for t in trials]))
    figure.update_yaxes(range=padded([t[y] for t in trials]))


def _levels(trials: Sequence[Trial]) -> list[float]:
    means = [2 * t["base"] * t["new"] / (t["base"] + t["new"]) for t in trials if t["base"] + t["new"] > 0]
    step = 5.0 if max(means, default=0) - min(means, default=0) < 30 else 10.0
    return sorted({step * round(mean / step) for mean in means} - {0.0})
