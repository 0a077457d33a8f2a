"""Whether a study's records agree with each other; each alone is checked as it is read (`schema`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from prometar.errors import UserError
from tune.results.schema import FinalTest, Reevaluation, Run, TrialRecord

MEND = "remove it, and run search.py again"


def require_trial(path: Path, trial: TrialRecord) -> None:
    """
    Raises:
        UserError: the record at `path` is another trial's, such as a copy, or has a run twice.
    """
    if path.parent.name != f"{trial.number:04d}":
        raise UserError(f"{path} is the record of trial {trial.number}: move it out of the study, or back")
    _require_once(path, trial.runs)


def require_reevaluation(path: Path, found: Reevaluation) -> None:
    """
    Raises:
        UserError: settings stand in it twice, or those that were chosen do not.
    """
    numbers = [row.number for row in found.rows]
    _require_different(path, "rows", numbers)
    if found.chosen is not None and found.rows and found.chosen not in numbers:
        raise UserError(f"{path} is damaged, chosen: trial {found.chosen} is not among its rows; {MEND}")
    for row in found.rows:
        _require_once(path, row.runs)


def require_final_test(path: Path, found: FinalTest) -> None:
    """
    Raises:
        UserError: a run stands in it twice.
    """
    for test in found.datasets.values():
        for runs in (test.best, test.released):
            _require_once(path, runs)


def _require_once(path: Path, runs: Iterable[Run]) -> None:
    _require_different(path, "runs", [(run.dataset, run.seed, run.fold) for run in runs])


def _require_different(path: Path, field: str, keys: Sequence[object]) -> None:
    if len(set(keys)) != len(keys):
        raise UserError(f"{path} is damaged, {field}: one stands there twice; {MEND}")
