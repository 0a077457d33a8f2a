"""How long a study still takes: said after a trial's first epoch, and its second if that was faster."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tune.execution.estimate import ADVICE, Estimate


def said(steps: float, *results: dict[str, Any], steps_per_epoch: int = 10, at_a_time: int = 2) -> list[str]:
    out = io.StringIO()
    estimate = Estimate(steps, steps_per_epoch, at_a_time, console=Console(file=out, soft_wrap=True))
    for result in results:
        trial = SimpleNamespace(trial_id=result.get("trial", "one"))
        estimate.on_trial_result(0, [], trial, result)
    return out.getvalue().splitlines()


def test_it_is_said_once() -> None:
    first = {"epoch": 1, "seconds": 5.0}  # 10 steps, half a second each
    assert said(3600, first, {"epoch": 2, "seconds": 50.0}) == [
        "the whole study, its final runs too, takes at most about 30 minutes more: 0.5 s a step, "
        "2 trials at a time"
    ]


def test_what_only_the_first_epoch_holds_is_taken_back() -> None:
    first = {"epoch": 1, "seconds": 50.0}
    lines = said(3600, first, {"epoch": 2, "seconds": 51.0}, {"epoch": 3, "seconds": 51.5})
    assert lines[1:] == [
        "its first epoch held what is done once; the whole study takes at most about 6 minutes more: "
        "0.1 s a step, 2 trials at a time"
    ]
    assert len(said(3600, first, {"epoch": 2, "seconds": 90.0})) == 1, "as slow as the first"


@pytest.mark.parametrize("other", [{"trial": "two"}, {"member": 1}, {"epoch": 1}])
def test_only_the_same_trial_tells_of_its_second_epoch(other: dict[str, Any]) -> None:
    second = {"epoch": 2, "seconds": 51.0}
    first = {"epoch": 1, "seconds": 50.0}
    assert len(said(3600, first, second | other)) == 1
    assert len(said(3600, first, second | other, second)) == 2


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
