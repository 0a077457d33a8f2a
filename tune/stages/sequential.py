"""How many pairs of final runs a comparison takes: it ends when it is decided, and looks a few times at most.

Looking at a test again and again, and stopping when it shows something, finds differences that are not there.
So the 5 % that it may be wrong are spent over four looks, a share each (Bonferroni): all four intervals hold
the true difference together in 95 of 100 studies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev

from scipy.special import stdtrit

from prometar.metrics import Interval, t_interval

POWER = 0.8


@dataclass(frozen=True)
class Look:
    """After `pairs` pairs, at an interval that is wrong in `alpha` of all cases."""

    pairs: int
    alpha: float


LOOKS = (Look(5, 0.005), Look(8, 0.01), Look(11, 0.015), Look(15, 0.02))
"""Most of the error is kept for the looks that can see most."""


@dataclass(frozen=True)
class Verdict:
    """What paired differences have shown by a look.

    Args:
        interval: Of the mean difference, corrected for all looks.
        shown: Whether 0 is outside of it. excluded: Whether a difference that matters is.
        detectable: The smallest true difference that this look would have shown in four of five studies.
        over: Whether more pairs are of no use, or allowed.
    """

    interval: Interval
    shown: bool
    excluded: bool
    detectable: float
    over: bool


def next_look(pairs: int) -> Look | None:
    """The first look that needs more than `pairs` pairs; None after the last.

    Example:
        >>> next_look(5).pairs
        8
    """
    return next((look for look in LOOKS if look.pairs > pairs), None)


def verdict(differences: Sequence[float], *, matters: float) -> Verdict:
    """What the first so many pairs show; there are as many as a look takes.

    Args:
        differences: Paired by seed, chosen minus released, in points.
        matters: The smallest difference that matters, in points.
    """
    look = next(look for look in LOOKS if look.pairs == len(differences))
    interval = t_interval(differences, level=1 - look.alpha)
    assert interval is not None
    shown, excluded = interval.excludes_zero, interval.within(matters)
    return Verdict(
        interval, shown, excluded, _detectable(differences, look), shown or excluded or look is LOOKS[-1]
    )


def _detectable(differences: Sequence[float], look: Look) -> float:
    """(t_{1 - alpha/2} + t_{power}) s / sqrt(n): the usual approximation of a t-test's power."""
    freedom = look.pairs - 1
    quantiles = float(stdtrit(freedom, 1 - look.alpha / 2)) + float(stdtrit(freedom, POWER))
    return quantiles * stdev(differences) / math.sqrt(look.pairs)
