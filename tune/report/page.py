"""report.html: a single file that works offline and is rendered from the study's records only."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from prometar.io.files import write_atomically
from prometar.io.stores import masked
from prometar.io.yamltext import dump_yaml
from tune.records.folder import Records
from tune.records.timeline import TimelineEntry
from tune.report import statements
from tune.report.plots import MIN_IMPORTANCE_TRIALS, plots
from tune.report.tables import Table, detail_tables, summary_tables

STAGES = ("Search", "Confirmation", "Final test")

_TEMPLATES = Environment(
    loader=PackageLoader("tune.report"),
    autoescape=True,  # dataset names and error messages may contain HTML
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Progress:
    """Progress of a running study, which the page shows first.

    Args:
        updated: Time of this progress, with a time zone.
        refresh_seconds: Seconds after which the browser reloads the page.
        stages: Name of each stage, completed fraction, and a summary.
        running: Table of the running jobs.
        timeline: Timeline entries of the running jobs.
    """

    updated: datetime
    refresh_seconds: int
    stages: Sequence[tuple[str, float, str]]
    running: Table
    timeline: Sequence[TimelineEntry]


@dataclass(frozen=True)
class Report:
    """Report of a study. Notebooks display only the summary.

    Args:
        path: Path of report.html.
    """

    path: Path
    records: Records

    def _repr_html_(self) -> str:
        return _render_records("summary.html.jinja", self.records, path=self.path)


def write_report(records: Records, progress: Progress | None = None) -> Report:
    """Write report.html into the study's folder.

    Args:
        progress: Progress of the study, or None if it is not running.

    Raises:
        InfrastructureError: the disk is full or the folder is not writable.
    """
    path = records.folder / "report.html"
    write_atomically(path, render(records, progress).encode())
    return Report(path, records)


def render(records: Records, progress: Progress | None = None) -> str:
    """Return the HTML of the report."""
    study = records.study
    running_entries = progress.timeline if progress else ()
    return _render_records(
        "report.html.jinja",
        records,
        plotly_js=get_plotlyjs(),
        progress=progress,
        plots=plots(records, running_entries),
        detail_tables=detail_tables(records),
        min_importance_trials=MIN_IMPORTANCE_TRIALS,
        config_yaml=masked(dump_yaml(study.config.model_dump(mode="json"))),
        environments=[study.environment, *study.earlier_environments],
    )


def _render_records(name: str, records: Records, **values: Any) -> str:
    common = {"records": records, "statements": statements, "tables": summary_tables(records)}
    return render_template(name, **common, **values)


def render_template(name: str, **values: Any) -> str:
    """Return the HTML of a template with these values, which are escaped unless they are `Markup`."""
    return _TEMPLATES.get_template(name).render(**values)
