"""report.html: a single file that works offline and is rendered from the study's records only."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from prometar.io.files import write_atomically
from prometar.io.stores import masked
from prometar.io.yamltext import dump_yaml
from tune.records.folder import Records
from tune.report import statements
from tune.report.plots import MIN_IMPORTANCE_TRIALS, plots
from tune.report.tables import detail_tables, summary_tables

_TEMPLATES = Environment(
    loader=PackageLoader("tune.report"),
    autoescape=True,  # dataset names and error messages may contain HTML
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Report:
    """Report of a study. Notebooks display only the summary.

    Args:
        path: Path of report.html.
    """

    path: Path
    records: Records

    def _repr_html_(self) -> str:
        return _render_template("summary.html.jinja", self.records, path=self.path)


def write_report(records: Records) -> Report:
    """Write report.html into the study's folder.

    Raises:
        InfrastructureError: the disk is full or the folder is not writable.
    """
    path = records.folder / "report.html"
    write_atomically(path, render(records).encode())
    return Report(path, records)


def render(records: Records) -> str:
    """Return the HTML of the report."""
    study = records.study
    return _render_template(
        "report.html.jinja",
        records,
        plotly_js=get_plotlyjs(),
        plots=plots(records),
        detail_tables=detail_tables(records),
        min_importance_trials=MIN_IMPORTANCE_TRIALS,
        config_yaml=masked(dump_yaml(study.config.model_dump(mode="json"))),
        environments=[study.environment, *study.earlier_environments],
    )


def _render_template(name: str, records: Records, **values: Any) -> str:
    common = {"records": records, "statements": statements, "tables": summary_tables(records)}
    return _TEMPLATES.get_template(name).render(**common, **values)
