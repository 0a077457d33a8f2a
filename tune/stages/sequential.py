"""How many pairs of final runs a comparison takes: it ends when it is decided, and looks a few times at most.

Looking at a test again and again, and stopping when it shows something, finds differences that are not there.
So the 5 % that it may be wrong are spent over four looks, a share each (Bonferroni): all four intervals hold
the true difference together in 95 of 100 studies.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev

from scipy.special import nctdtrinc, stdtrit

from prometar.metrics import t_interval

POWER = 0.8
ALONE = 3
"""Runs of the released settings where there is nothing to compare them with."""


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
        shown: Whether 0 is outside of the mean difference's interval, which is corrected for all looks.
        excluded: Whether a difference that matters is.
        detectable: The smallest true difference that this look would have shown in four of five studies.
    """

    shown: bool
    excluded: bool
    detectable: float

    @property
    def decided(self) -> bool:
        """Whether more pairs are of no use."""
        return self.shown or self.excluded


def verdict(differences: Sequence[float], alpha: float, *, matters: float) -> Verdict | None:
    """What these pairs show; None for fewer than two.

    Args:
        differences: Paired by seed, chosen minus released, in points.
        alpha: How often the interval may be wrong. matters: The smallest difference that matters, in points.
    """
    interval = t_interval(differences, level=1 - alpha)
    if interval is None:
        return None
    return Verdict(interval.excludes_zero, interval.within(matters), detectable(differences, alpha))


def detectable(differences: Sequence[float], alpha: float) -> float:
    """delta s / sqrt(n), where a noncentral t of n - 1 degrees with centre delta is above t_{1 - alpha/2} in
    four of five cases: the power of a t-test, as if s were known to be the true one."""
    n = len(differences)
    delta = float(nctdtrinc(n - 1, 1 - POWER, stdtrit(n - 1, 1 - alpha / 2)))
    return delta * stdev(differences) / math.sqrt(n)
