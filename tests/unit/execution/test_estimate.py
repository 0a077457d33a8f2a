"""How long a study still takes: said once, from the first epoch of a trial."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from tune.execution.estimate import ADVICE, Estimate


def said(steps: float, *results: dict[str, Any], steps_per_epoch: int = 10, at_a_time: int = 2) -> list[str]:
    out = io.StringIO()
    estimate = Estimate(steps, steps_per_epoch, at_a_time, console=Console(file=out, soft_wrap=True))
    for result in results:
        estimate.on_trial_result(0, [], None, result)
    return out.getvalue().splitlines()


def test_it_is_said_once() -> None:
    first = {"epoch": 1, "seconds": 5.0}  # 10 steps, half a second each
    assert said(3600, first, {"epoch": 2, "seconds": 50.0}) == [
        "the whole study, its final runs too, takes at most about 30 minutes more: 0.5 s a step, "
        "2 trials at a time"
    ]


def test_seconds_are_of_all_epochs_so_far() -> None:
    """A study that goes on first hears of an epoch that is not its trial's first."""
    assert said(7200, {"epoch": 1, "seconds": 5.0}) == said(7200, {"epoch": 4, "seconds": 20.0})


@pytest.mark.parametrize(("steps", "warned"), [(24 * 7200, False), (24 * 7200 + 60, True)])
def test_more_than_a_day_is_warned_of(steps: float, warned: bool) -> None:
    lines = said(steps, {"epoch": 1, "seconds": 5.0})
    assert "at most about 24 hours more" in lines[0]
    assert (lines[1:] == [ADVICE]) == warned


def test_a_failed_trial_tells_nothing() -> None:
    assert said(7200, {"epoch": 1, "failed": "the loss is nan"}) == []
    assert len(said(7200, {"epoch": 1, "failed": "the loss is nan"}, {"epoch": 1, "seconds": 5.0})) == 1
