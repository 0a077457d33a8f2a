"""A study's report: one self-contained HTML file, a pure function of the records in the study's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from prometar.io.files import write_atomically
from tune.optimizer.importance import MIN_COMPLETE, Importances, importances
from tune.reporting import formatting, statements
from tune.reporting.plots import course, goals, settings, style
from tune.reporting.plots.finals import Row, forest
from tune.results.reader import STATES, Records, costs, dataset_means, pareto, ranking, read_records, span
from tune.results.writer import EARLIER

TOP = 20  # trials on the leaderboard; the others are folded away


def build_report(study_dir: Path) -> Path:
    """Write study_dir/report.html from the records alone. Returns its path.

    Raises:
        UserError: the folder holds no study, or a damaged record.
    """
    path = study_dir / "report.html"
    write_atomically(path, render(read_records(study_dir)).encode("utf-8"))
    return path


def page(template: str, **content: Any) -> str:
    """A template of this package, filled in."""
    environment = Environment(
        loader=PackageLoader("tune.reporting", "templates"),
        autoescape=True,  # names and reasons come from data sets and exceptions
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "num": formatting.number, "signed": formatting.signed, "setting": formatting.setting,
        "duration": formatting.duration, "hours": formatting.hours, "spread": formatting.spread,
        "counted": formatting.counted, "listed": formatting.listed, "shown": formatting.shown,
    }  # fmt: skip
    return environment.get_template(template).render(plotly=Markup(style.library()), **content)


def render(records: Records) -> str:
    """The page."""
    shares = importances(records.trials, records.ranges)
    ranked = ranking(records.trials)
    return page(
        "report.html.jinja",
        records=records,
        study=records.study,
        asked=records.asked,
        trials=records.trials,
        finals=records.finals,
        best=records.best,
        chosen=records.chosen,
        released=records.released,
        score=records.score,
        verdict=statements.verdict(records),
        advice=statements.advice(records),
        alignment=statements.alignment(records),
        caveats=statements.caveats(records),
        rows=statements.settings_rows(records),
        round_rows=statements.round_rows(records),
        final_rows=statements.final_rows(records),
        sides=statements.sides,
        ranking=ranked,
        top=TOP,
        states=STATES,
        by_state={state: sum(t["state"] == state for t in records.trials) for state in STATES},
        means={t["number"]: dataset_means(t) for t in records.trials},
        front=_front(records),
        importance=shares,
        min_complete=MIN_COMPLETE,
        costs=costs(records),
        span=span(records),
        environment=_environment(records.study),
        config=yaml.safe_dump(records.study["config"], sort_keys=False),
        plots=_plots(records, shares),
    )


def _front(records: Records) -> list[Any]:
    asked = records.asked["goals"]
    return pareto(records.trials, asked) if len(asked) > 1 else []


def _environment(study: Mapping[str, Any]) -> dict[str, str]:
    """Versions and machine of the last command; with those of earlier ones where they differ."""
    found = {}
    for key, value in study["environment"].items():
        others = dict.fromkeys(each.get(key, "unknown") for each in study.get(EARLIER, []))
        before = ", ".join(other for other in others if other != value)
        found[key] = f"{value} (earlier {before})" if before else value
    return found


def _plots(records: Records, shares: Importances) -> dict[str, Any]:
    trials, best, score, ranges = records.trials, records.chosen, records.score, records.ranges
    titles = {goal: records.goal_title(goal) for goal in records.asked["goals"]}
    numeric = [key for key in shares.ranked if settings.numeric(key, ranges)][:2]
    plots = {
        "history": course.history(trials, titles) if trials else None,
        "importance": settings.importance(shares.shares),
        "contour": settings.contour(trials, ranges, (numeric[0], numeric[1]), score=score)
        if len(numeric) == 2
        else None,
        "parallel": settings.parallel(trials, ranges, score=score),
        "curves": course.curves(trials, best, score=score),
        "front": goals.front(trials, _front(records), best, titles) if len(titles) == 2 else None,
        "trade_off": None  # the front shows the same
        if set(titles) == {"base", "new"}
        else goals.trade_off(trials, best, {key: records.goal_title(key) for key in ("base", "new")}),
        "forest": forest(_forest_rows(records), title="best − released, points of H"),
    }
    panels = settings.slices(trials, ranges, best, score=score)
    return {
        **{name: Markup(plot) if plot else None for name, plot in plots.items()},
        "slices": [Markup(panel) for panel in panels],
    }


def _forest_rows(records: Records) -> list[Row]:
    finals = records.finals
    if not finals or finals["same"]:
        return []
    rows = [
        Row(name, entry["difference"], statements.seed_differences(entry))
        for name, entry in finals["datasets"].items()
    ]
    if len(rows) > 1:
        rows.append(Row("over data sets", finals["difference"], total=True))
    return rows
