"""How long a study still takes: said once, after the first epoch or the second."""

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


FIRST = {"epoch": 1, "seconds": 80.0}
BY_THE_FIRST = (
    "the whole study, its final runs too, takes at most about 8.0 hours more: 8 s a step, 2 trials at a time"
)


def test_a_long_first_epoch_is_enough() -> None:
    assert said(3600, FIRST, {"epoch": 2, "seconds": 82.0}, {"epoch": 3, "seconds": 84.0}) == [BY_THE_FIRST]


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
    first, other = {"epoch": 1, "seconds": 20.0}, {"epoch": 2, "seconds": 45.0, "trial": "b"}
    assert said(3600, first, other) == []
    lines = said(3600, first, other, {"epoch": 3, "seconds": 50.0, "trial": "b"})
    assert "takes at most about 30 minutes more: 0.5 s a step" in lines[0]


def test_trials_of_one_epoch_say_it_once() -> None:
    whole = {"epoch": 1, "finished": True}
    assert len(said(3600, {**whole, "seconds": 50.0}, {**whole, "seconds": 1.0, "trial": "b"})) == 1


def test_one_trial_at_a_time() -> None:
    assert said(3600, FIRST, at_a_time=1)[0].endswith("8 s a step, one trial at a time")


def test_a_trial_that_started_over_says_nothing_by_the_difference() -> None:
    again = [{"epoch": 2, "seconds": 80.0}, {"epoch": 1, "seconds": 20.0}]
    assert said(3600, *again) == []
    assert "0.3 s a step" in said(3600, *again, {"epoch": 2, "seconds": 23.0})[0]


def test_seconds_are_of_all_epochs_so_far() -> None:
    """A study that goes on first hears of an epoch that is not its trial's first."""
    assert said(3600, {"epoch": 4, "seconds": 320.0}) == [BY_THE_FIRST]
    assert said(3600, {"epoch": 4, "seconds": 80.0}) == []


@pytest.mark.parametrize(("steps", "warned"), [(24 * 7200, False), (24 * 7200 + 60, True)])
def test_more_than_a_day_is_warned_of(steps: float, warned: bool) -> None:
    lines = said(steps, {"epoch": 2, "seconds": 10.0, "finished": True})
    assert "at most about 24 hours more" in lines[0]
    assert (lines[1:] == [ADVICE]) == warned


def test_a_failed_trial_tells_nothing() -> None:
    assert said(7200, {"epoch": 1, "failed": "the loss is nan"}) == []
    assert len(said(7200, {"epoch": 1, "failed": "the loss is nan"}, FIRST)) == 1
