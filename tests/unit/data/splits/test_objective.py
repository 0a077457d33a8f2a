"""An objective of one's own makes one finite number of accuracies, whenever it is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from prometar.data.splits.objective import figure_of, objective_of
from prometar.errors import UserError

MINE = """
import math

def lower(accuracies):
    return min(accuracies.values())

def later(accuracies):  # as expected when it is tried, and not afterwards
    return {80.0: 1.0, 40.0: math.nan, 50.0: "50", 60.0: math.inf}[accuracies["base"]]

def nothing(accuracies):
    return None
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_objective.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)


def test_the_number_is_the_functions() -> None:
    assert figure_of("own_objective:lower", {"base": 40.0, "new": 30}) == 30.0
    assert figure_of("final", {"base": 50.0, "new": 50.0}) == 50.0


@pytest.mark.parametrize(("base", "found"), [(40.0, "nan"), (50.0, "'50'"), (60.0, "inf")])
def test_anything_else_is_one_line(base: float, found: str) -> None:
    message = f"own_objective:later must make one finite number of accuracies, found {found}$"
    with pytest.raises(UserError, match=message):
        figure_of("own_objective:later", {"base": base, "new": 30.0})


def test_it_is_tried_before_anything_runs() -> None:
    with pytest.raises(UserError, match=r"own_objective:nothing must make one finite number .*, found None"):
        objective_of("own_objective:nothing")


def test_its_errors_are_told_with_their_place() -> None:
    with pytest.raises(
        UserError, match=r"own_objective:later fails: KeyError: 70\.0 \(own_objective\.py, line 8\)"
    ):
        figure_of("own_objective:later", {"base": 70.0, "new": 30.0})
