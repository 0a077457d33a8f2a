"""How long a whole study still takes, said once, after an epoch or two of its first trial.

A first epoch holds what is done once (images are read, texts encoded, a GPU warms up): where it is short the
next one is waited for.
"""

from collections.abc import Mapping
from typing import Any

from ray.tune import Callback
from rich.console import Console

from prometar.distributed.placement import at_a_time

DAY = 24.0  # hours, from which on a user is warned
ADVICE = (
    "warning: that is more than a day. Fewer --trials or --epochs, or --max-hours, make it shorter; so do a "
    "GPU (ViT-B/16 is slow on a CPU) and more machines (clusters/README.md)"
)
LONG = 60.0
"""Seconds of a first epoch, from which on what is done once is a small part of it, and the next is far."""


class Estimate(Callback):
    """Says once how many hours are left at most, and what to do where they are more than a day.

    Args:
        steps: Left of the whole study at most, one after the other (`Budget.waited`).
        steps_per_epoch: Of the first trial, the released settings', all its runs together.
        at_a_time: Trials that run beside each other.
        console: Where it is said.
    """

    def __init__(self, steps: float, steps_per_epoch: int, at_a_time: int, *, console: Console) -> None:
        self._steps, self._steps_per_epoch, self._at_a_time = steps, steps_per_epoch, at_a_time
        self._console = console
        self._earlier = dict[tuple[str, int], tuple[int, float]]()  # epochs of each trial, and their seconds
        self._told = False

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        self._look(trial.trial_id, result)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._look(trial.trial_id, trial.last_result or {})  # the last one comes here alone

    def _look(self, trial_id: str, result: Mapping[str, Any]) -> None:
        seconds, number = result.get("seconds"), result.get("epoch")
        if self._told or not seconds or not number:  # none where it has failed
            return
        key = trial_id, result.get("member", 0)  # of those that share a place
        epochs, before = self._earlier.get(key, (0, 0.0))
        self._earlier[key] = number, seconds  # of all its epochs so far
        pace = (seconds - before) / max(1, number - epochs)
        if number > epochs and (epochs or pace >= LONG or result.get("finished")):
            self._told = True
            self._say(pace)

    def _say(self, seconds: float) -> None:
        """`seconds`: of an epoch."""
        step = seconds / self._steps_per_epoch
        hours = step * self._steps / 3600
        self._console.print(
            f"the whole study, its final runs too, takes at most about {_duration(hours)} more: "
            f"{step:.2g} s a step, {at_a_time(self._at_a_time, 'trial')}"
        )
        if hours > DAY:
            self._console.print(ADVICE)


def _duration(hours: float) -> str:
    """
    Example:
        >>> _duration(0.02), _duration(3.14), _duration(60.0)
        ('2 minutes', '3.1 hours', '60 hours')
    """
    if hours < 1:
        return f"{max(2, round(60 * hours))} minutes"
    return f"{hours:.1f} hours" if hours < DAY else f"{hours:,.0f} hours"
