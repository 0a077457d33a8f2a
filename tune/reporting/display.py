"""A study's report as a notebook shows it: its sentences and tables; the page has the plots."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tune.reporting.html import filled
from tune.reporting.statements import advice, caveats, expectation, verdict
from tune.reporting.tables import summary_tables
from tune.results.reader import Records


@dataclass(frozen=True)
class Report:
    """A study's report. `path`: of the whole page, report.html."""

    path: Path
    records: Records

    def _repr_html_(self) -> str:
        """What Jupyter shows: no script in it, and all that records hold is escaped."""
        return filled(
            "summary.html.jinja",
            name=self.records.study.name,
            path=self.path,
            sentences=[says(self.records) for says in (verdict, expectation, advice)],
            tables=summary_tables(self.records),
            caveats=caveats(self.records),
        )

    def __repr__(self) -> str:
        return f"{verdict(self.records)} The report: {self.path}"
