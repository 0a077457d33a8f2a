"""report.html: one file that works offline, made from records alone."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from prometar.io.files import write_atomically
from prometar.io.stores import masked
from tune.records.folder import STATES, Records
from tune.report import statements
from tune.report.plots import MIN_COMPLETED, library, plots
from tune.report.tables import all_tables, summary_tables


@dataclass(frozen=True)
class Report:
    """Report of a study. A notebook shows its summary.

    Args:
        path: The page, report.html.
    """

    path: Path
    records: Records

    def _repr_html_(self) -> str:
        return _filled("summary.html.jinja", self.records, path=self.path)


def write_report(records: Records) -> Report:
    """Write report.html into the study's folder.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    path = records.folder / "report.html"
    write_atomically(path, render(records).encode())
    return Report(path, records)


def render(records: Records) -> str:
    """The page as HTML."""
    study = records.study
    return _filled(
        "report.html.jinja",
        records,
        plotly=library(),
        plots=plots(records),
        more_tables=all_tables(records),
        min_completed=MIN_COMPLETED,
        config=masked(yaml.safe_dump(study.config.model_dump(mode="json"), sort_keys=False)),
        environments=[study.environment, *study.earlier_environments],
    )


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("tune.report"),
        autoescape=True,  # names come from datasets, reasons from exceptions
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _filled(template: str, records: Records, **content: Any) -> str:
    values = {"records": records, "says": statements, "states": STATES, "tables": summary_tables(records)}
    return _templates().get_template(template).render(**values, **content)
