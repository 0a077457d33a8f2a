"""How long a study still takes: said after the first epochs, and after a later one that was faster."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tune.execution.estimate import ADVICE, Estimate


def said(steps: float, *results: dict[str, Any], steps_per_epoch: int = 10, at_a_time: int = 2) -> list[str]:
    """The lines that these results bring; of trial "a" where it is not told."""
    out = io.StringIO()
    estimate = Estimate(steps, steps_per_epoch, at_a_time, console=Console(file=out, soft_wrap=True))
    for result in results:
        trial = SimpleNamespace(trial_id=result.get("trial", "a"), last_result=result)
        if result.get("finished"):  # Tune tells it so where it is a worker's last
            estimate.on_trial_complete(0, [], trial)
        else:
            estimate.on_trial_result(0, [], trial, result)
    return out.getvalue().splitlines()


FIRST = {"epoch": 1, "seconds": 50.0}


def test_an_epoch_as_slow_as_the_first_says_nothing() -> None:
    first = {"epoch": 1, "seconds": 5.0}  # 10 steps, half a second each
    assert said(3600, first, {"epoch": 2, "seconds": 10.0}, {"epoch": 3, "seconds": 11.0}) == [
        "the whole study, its final runs too, takes at most about 30 minutes more: 0.5 s a step, "
        "2 trials at a time"
    ]


@pytest.mark.parametrize("last", [False, True])
def test_what_only_the_first_epoch_holds_is_taken_back_by_the_next(last: bool) -> None:
    lines = said(3600, FIRST, {"epoch": 3, "seconds": 72.0, "finished": last}, {"epoch": 4, "seconds": 73.0})
    assert lines[1:] == [
        "by a later epoch, the study takes at most about 1.1 hours more: 1.1 s a step, 2 trials at a time"
    ]


def test_where_the_first_epoch_is_short_the_next_one_is_waited_for() -> None:
    """Most of it may be what is done once: a warning of days would be a false one."""
    first = {"epoch": 1, "seconds": 20.0}
    assert said(24 * 3600, first, {"epoch": 1, "seconds": 19.0, "trial": "b"}) == []
    lines = said(24 * 3600, first, {"epoch": 2, "seconds": 22.0}, {"epoch": 3, "seconds": 23.0})
    assert lines == [
        "the whole study, its final runs too, takes at most about 4.8 hours more: 0.2 s a step, "
        "2 trials at a time"
    ]


def test_epochs_of_different_trials_are_not_mixed() -> None:
    others = [{"epoch": 2, "seconds": 51.0, "trial": "b"}, {"epoch": 1, "seconds": 50.5, "trial": "c"}]
    assert len(said(3600, FIRST, *others)) == 1
    assert len(said(3600, FIRST, *others, {"epoch": 3, "seconds": 53.0, "trial": "b"})) == 2


def test_trials_of_one_epoch_say_it_once() -> None:
    whole = {"epoch": 1, "finished": True}
    assert len(said(3600, {**whole, "seconds": 50.0}, {**whole, "seconds": 1.0, "trial": "b"})) == 1


def test_one_trial_at_a_time() -> None:
    assert said(3600, FIRST, at_a_time=1)[0].endswith("5 s a step, one trial at a time")


def test_a_trial_that_started_over_says_nothing_about_time() -> None:
    assert len(said(3600, {"epoch": 2, "seconds": 80.0}, {"epoch": 1, "seconds": 20.0})) == 1


def test_seconds_are_of_all_epochs_so_far() -> None:
    """A study that goes on first hears of an epoch that is not its trial's first."""
    assert said(7200, {"epoch": 1, "seconds": 5.0}) == said(7200, {"epoch": 4, "seconds": 20.0})


@pytest.mark.parametrize(("steps", "warned"), [(24 * 7200, False), (24 * 7200 + 60, True)])
def test_more_than_a_day_is_warned_of(steps: float, warned: bool) -> None:
    lines = said(steps, {"epoch": 2, "seconds": 10.0, "finished": True})
    assert "at most about 24 hours more" in lines[0]
    assert (lines[1:] == [ADVICE]) == warned


def test_a_failed_trial_tells_nothing() -> None:
    assert said(7200, {"epoch": 1, "failed": "the loss is nan"}) == []
    assert len(said(7200, {"epoch": 1, "failed": "the loss is nan"}, FIRST)) == 1
