"""A study's report: a self-contained HTML file and what a notebook shows, pure functions of its records."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from prometar.io.files import write_atomically
from prometar.io.pages import templates
from prometar.io.stores import masked
from tune.reporting import formatting, statements, tables
from tune.reporting.importance import MIN_COMPLETE, Importances, importances
from tune.reporting.plots import course, goals, settings, style
from tune.reporting.plots.finals import Row, forest
from tune.results.costs import costs, span
from tune.results.reader import STATES, Records, dataset_means, paired, pareto, ranking, read_records
from tune.results.schema import StudyRecord, TrialRecord
from tune.space.spaces import Choice
from tune.stages.budget import counted

TOP = 20  # trials on the leaderboard; the others are folded away


@dataclass(frozen=True)
class Report:
    """A study's report. `path`: of the whole page, report.html."""

    path: Path
    records: Records

    def _repr_html_(self) -> str:
        """What Jupyter shows: no script in it, and all that records hold is escaped."""
        shown = tables.summary_tables(self.records)
        return filled(
            "summary.html.jinja", path=self.path, records=self.records, says=statements, tables=shown
        )

    def __repr__(self) -> str:
        return f"{statements.verdict(self.records)} The report: {self.path}"


def build_report(study_dir: Path) -> Path:
    """Write study_dir/report.html from the records alone. Returns its path.

    Raises:
        UserError: the folder holds no study, or a damaged record.
    """
    return write_report(read_records(study_dir), study_dir)


def write_report(records: Records, study_dir: Path) -> Path:
    """Write study_dir/report.html. Returns its path."""
    path = study_dir / "report.html"
    write_atomically(path, render(records).encode("utf-8"))
    return path


def page(template: str, **content: Any) -> str:
    """A whole page of this package, filled in, with the library of its plots."""
    return filled(template, plotly=Markup(style.library()), **content)


def filled(template: str, **content: Any) -> str:
    """A template of this package, filled in."""
    environment = templates("tune.reporting")
    environment.filters |= {
        "num": formatting.number, "signed": formatting.signed, "setting": formatting.setting,
        "chance": formatting.chance, "duration": formatting.duration, "hours": formatting.hours,
        "bounds": formatting.bounds, "counted": counted, "listed": formatting.listed,
        "shown": formatting.shown,
    }  # fmt: skip
    return environment.get_template(template).render(**content)


def render(records: Records) -> str:
    """The page."""
    shares, several_goals = importances(records.trials, records.ranges), len(records.asked.goals) > 1
    front = pareto(records.keeping, records.asked.goals) if several_goals else []
    return page(
        "report.html.jinja",
        records=records,
        says=statements,
        settings_rows=tables.settings_rows(records),
        round_rows=tables.round_rows(records),
        final_rows=tables.final_rows(records),
        ranking=ranking(records.trials),
        top=TOP,
        states=STATES,
        dataset_means=dataset_means,
        front=front,
        importance=shares,
        min_complete=MIN_COMPLETE,
        costs=costs(records),
        span=span(records),
        environment=_environment(records.study),
        config=masked(yaml.safe_dump(dict(records.study.config), sort_keys=False)),
        plots=_plots(records, shares, front),
    )


def _environment(study: StudyRecord) -> dict[str, str]:
    """Versions and machine of the last command; with those of earlier ones where they differ."""
    found = {}
    gpus = ["gpus"] if any("gpus" in each for each in study.earlier_environments) else []
    for key in dict.fromkeys([*study.environment, *gpus]):
        absent = "none" if key == "gpus" else "unknown"
        value = study.environment.get(key, absent)
        others = dict.fromkeys(each.get(key, absent) for each in study.earlier_environments)
        before = ", ".join(other for other in others if other != value)
        found[key] = f"{value} (earlier {before})" if before else value
    return found


def _plots(records: Records, shares: Importances, front: list[TrialRecord]) -> dict[str, Any]:
    asked = records.asked.goals
    numeric = [key for key in shares.ranked if not isinstance(records.ranges[key], Choice)][:2]
    plots = {
        "history": course.history(records) if records.trials else None,
        "importance": settings.importance(shares.shares),
        "contour": settings.contour(records, (numeric[0], numeric[1])) if len(numeric) == 2 else None,
        "parallel": settings.parallel(records),
        "curves": course.curves(records),
        "front": goals.front(records, front) if len(asked) == 2 else None,
        # The front may show the same.
        "trade_off": None if set(asked) == {"base", "new"} else goals.trade_off(records),
        "forest": forest(_forest_rows(records), title="best − released, points of H"),
    }
    return {
        **{name: Markup(plot) if plot else None for name, plot in plots.items()},
        "slices": [Markup(panel) for panel in settings.slices(records)],
    }


def _forest_rows(records: Records) -> list[Row]:
    finals = records.finals
    if not finals or finals.same:
        return []
    found = [
        Row(name, entry.difference, tuple(paired(entry.best, entry.released).values()))
        for name, entry in finals.datasets.items()
    ]
    if len(found) > 1:
        found.append(Row("over data sets", finals.difference, total=True))
    return found
