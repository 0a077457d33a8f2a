"""Figures of a trial that a search can optimise or keep within bounds."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from prometar.errors import UserError

Goal = Literal["objective", "base", "new", "seconds"]
SECONDS: Goal = "seconds"
"""The one goal that is minimised, and that only grows while a trial runs."""
GOALS: Mapping[Goal, Literal["minimize", "maximize"]] = {
    "objective": "maximize", "base": "maximize", "new": "maximize", SECONDS: "minimize"
}  # fmt: skip
"""Figures of a trial's last result, and whether more is better."""


def loss(goal: Goal, figure: float) -> float:
    """A figure with the sign that makes less the better.

    Example:
        >>> loss("base", 80.0), loss("seconds", 600.0)
        (-80.0, 600.0)
    """
    return figure if GOALS[goal] == "minimize" else -figure


@dataclass(frozen=True)
class Bound:
    """What settings must keep to be chosen: a figure of at least, or at most, a limit.

    Example:
        >>> str(Bound("base", 80.0, least=True))
        'base at least 80'
    """

    figure: Goal
    limit: float
    least: bool

    def excess(self, value: float | None) -> float:
        """By how much a figure breaks it; 0 or less where it is kept, infinite for no figure."""
        if value is None:
            return math.inf
        return self.limit - value if self.least else value - self.limit

    def __str__(self) -> str:
        limit = repr(self.limit).removesuffix(".0")  # all digits: it is part of a study's identity
        return f"{self.figure} at {'least' if self.least else 'most'} {limit}"


def keeps(bounds: Iterable[Bound], figure: Callable[[Goal], float | None]) -> bool:
    """Whether figures, by name, keep all bounds."""
    return all(bound.excess(figure(bound.figure)) <= 0 for bound in bounds)


def in_words(bounds: Iterable[Bound]) -> str:
    """All of them, in a sentence."""
    return " and ".join(map(str, bounds))


def parse_bounds(at_least: Sequence[str], at_most: Sequence[str]) -> tuple[Bound, ...]:
    """
    Raises:
        UserError: no `figure=number`, an unknown figure, one that is bounded twice, or what nothing can keep.

    Example:
        >>> parse_bounds(["base=80"], [])
        (Bound(figure='base', limit=80.0, least=True),)
    """
    found = tuple(
        _parsed(text, least) for texts, least in ((at_least, True), (at_most, False)) for text in texts
    )
    if len({(bound.figure, bound.least) for bound in found}) != len(found):
        raise UserError(f"a figure is bounded twice: {', '.join(map(str, found))}")
    for low in (bound for bound in found if bound.least):
        high = next((each for each in found if not each.least and each.figure == low.figure), None)
        if high is not None and low.limit > high.limit:
            raise UserError(f"nothing can keep both {low} and {high}")
    return found


def _parsed(text: str, least: bool) -> Bound:
    option = "--at-least" if least else "--at-most"
    name, _, number = text.partition("=")
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if name not in GOALS or not math.isfinite(limit):
        raise UserError(f"{option} '{text}': expected figure=number with one of {', '.join(GOALS)}")
    if limit <= 0 or (name != SECONDS and limit > 100):
        what = "seconds above 0" if name == SECONDS else "percent above 0 and at most 100"
        raise UserError(f"{option} '{text}': expected {what}")
    return Bound(cast(Goal, name), limit, least)
