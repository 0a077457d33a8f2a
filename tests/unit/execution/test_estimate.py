"""How long a study still takes: said after a first epoch, and after a whole trial that was faster."""

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
        if result.get("finished"):  # Tune tells it so where it is a worker's last
            estimate.on_trial_complete(0, [], SimpleNamespace(last_result=result))
        else:
            estimate.on_trial_result(0, [], None, result)
    return out.getvalue().splitlines()


FIRST = {"epoch": 1, "seconds": 50.0}


def test_it_is_said_once() -> None:
    first = {"epoch": 1, "seconds": 5.0}  # 10 steps, half a second each
    assert said(3600, first, {"epoch": 2, "seconds": 50.0}) == [
        "the whole study, its final runs too, takes at most about 30 minutes more: 0.5 s a step, "
        "2 trials at a time"
    ]


def test_what_only_the_first_epoch_holds_is_taken_back() -> None:
    lines = said(
        3600, FIRST, {"epoch": 4, "seconds": 53.0}, {"epoch": 5, "seconds": 55.0, "finished": True}, FIRST
    )
    assert lines[1:] == [
        "by its first whole trial, the study takes at most about 1.1 hours more: 1.1 s a step, "
        "2 trials at a time"
    ]


@pytest.mark.parametrize("seconds", [240.0, 190.0])
def test_a_whole_trial_that_is_as_slow_says_nothing(seconds: float) -> None:
    assert len(said(3600, FIRST, {"epoch": 5, "seconds": seconds, "finished": True})) == 1


def test_one_of_one_epoch_says_it_once() -> None:
    assert len(said(3600, {**FIRST, "finished": True}, {"epoch": 1, "seconds": 1.0, "finished": True})) == 1


def test_a_trial_that_started_over_takes_nothing_back() -> None:
    again = [{"epoch": 1, "seconds": 60.0}, {"epoch": 2, "seconds": 61.0}]
    assert len(said(3600, FIRST, *again)) == 1


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
