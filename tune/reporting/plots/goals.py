"""One figure against another: base and new accuracy, and the front of a search with two goals."""

from collections.abc import Sequence

import plotly.graph_objects as go

from tune.reporting.plots.style import COLOURS, STATES, figures, fragment, mark, padded, points, released_of
from tune.results.goals import Goal
from tune.results.reader import Records
from tune.results.schema import TrialRecord


def trade_off(records: Records) -> str | None:
    """Accuracy on base against new classes; None where no trial has both."""
    both = [t for t in records.trials if t.base is not None and t.new is not None]
    if not both:
        return None
    figure = go.Figure()
    _equal_h(figure, both)
    for state, title in STATES.items():
        group = [t for t in both if t.state == state]
        points(figure, group, title, figures(group, "base"), figures(group, "new"), state)
    _marks(figure, both, records.chosen, "base", "new")
    x, y = map(records.goal_title, ("base", "new"))
    return fragment(figure, "trade-off", x=x, y=y, height=440)


def front(records: Records, front: Sequence[TrialRecord]) -> str | None:
    """Both goals of the finished trials, the front joined; None where no trial has both.

    `front`: The trials that none beats in both goals, by the first.
    """
    if not front:
        return None
    first, second = records.asked.goals
    on_front = {t.number for t in front}
    others = [
        t
        for t in records.in_state("COMPLETE")
        if None not in (t.goal(first), t.goal(second)) and t.number not in on_front
    ]
    figure = go.Figure()
    if {first, second} == {"base", "new"}:
        _equal_h(figure, [*front, *others], swapped=first == "new")
    points(
        figure, others, "not on the front", figures(others, first), figures(others, second),
        "COMPLETE", opacity=0.3,
    )  # fmt: skip
    figure.add_scatter(
        x=figures(front, first), y=figures(front, second), mode="lines", name="front", opacity=0.8,
        line={"color": COLOURS["COMPLETE"], "width": 1.5}, hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    points(figure, list(front), "front", figures(front, first), figures(front, second), "COMPLETE")
    _marks(figure, [*front, *others], records.chosen, first, second)
    x, y = map(records.goal_title, (first, second))
    return fragment(figure, "front", x=x, y=y, height=440)


def _marks(
    figure: go.Figure, trials: Sequence[TrialRecord], best: TrialRecord | None, x: Goal, y: Goal
) -> None:
    released = released_of(trials)
    if released:
        mark(figure, released, "released", released.goal(x), released.goal(y))
    if best and not best.reference and None not in (best.goal(x), best.goal(y)):
        mark(figure, best, "best", best.goal(x), best.goal(y))


def _equal_h(figure: go.Figure, trials: Sequence[TrialRecord], *, swapped: bool = False) -> None:
    """Lines of equal harmonic mean: new = H base / (2 base - H), the same with base and new swapped."""
    axes: tuple[Goal, Goal] = ("new", "base") if swapped else ("base", "new")
    low, high = padded(figures(trials, axes[0]))
    for count, level in enumerate(_levels(trials)):
        bases = [low + (high - low) * i / 60 for i in range(61)]
        bases = [base for base in bases if 2 * base - level > 1e-6]
        figure.add_scatter(
            x=bases, y=[level * base / (2 * base - level) for base in bases], mode="lines",
            hoverinfo="skip", line={"color": "#cbd5e0", "dash": "dot", "width": 1}, name="equal H",
            legendgroup="equal H", showlegend=count == 0,
        )  # fmt: skip
    figure.update_xaxes(range=[low, high])
    figure.update_yaxes(range=padded(figures(trials, axes[1])))


def _levels(trials: Sequence[TrialRecord]) -> list[float]:
    pairs = zip(figures(trials, "base"), figures(trials, "new"), strict=True)
    means = [2 * base * new / (base + new) for base, new in pairs if base + new > 0]
    step = 5.0 if max(means, default=0) - min(means, default=0) < 30 else 10.0
    return sorted({step * round(mean / step) for mean in means} - {0.0})
