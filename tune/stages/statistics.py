"""When the final test has seen enough seed pairs.

Stopping as soon as a repeated test shows something finds differences that do not exist. The 5 % error of the
final test is therefore divided over four interim analyses (Bonferroni): their intervals contain the true
difference together in at least 95 of 100 studies.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import NamedTuple

from scipy.special import nctdtrinc, stdtrit

from prometar.metrics import t_interval

POWER = 0.8
BASELINE_RUNS = 3
"""Runs of the baseline if it was selected itself, so that there is nothing to compare."""


class InterimAnalysis(NamedTuple):
    """An analysis after `pairs` seed pairs with an interval of level 1 - `alpha`."""

    pairs: int
    alpha: float


INTERIM_ANALYSES = (
    InterimAnalysis(5, 0.005),
    InterimAnalysis(8, 0.01),
    InterimAnalysis(11, 0.015),
    InterimAnalysis(15, 0.02),
)
"""Later analyses have more power, so most of the error is left to them."""


@dataclass(frozen=True)
class Decision:
    """Result of an interim analysis.

    Args:
        shown: True if the interval of the mean difference excludes 0.
        excluded: True if the interval excludes every difference that matters.
        detectable: Smallest true difference that this analysis would show in four of five studies.
    """

    shown: bool
    excluded: bool
    detectable: float

    @property
    def final(self) -> bool:
        """True if more seed pairs cannot change the verdict."""
        return self.shown or self.excluded


def decide(differences: Sequence[float], alpha: float, *, matters: float) -> Decision | None:
    """Analyze paired differences. Return None for fewer than two.

    Args:
        differences: Selected minus baseline by seed, in points.
        alpha: Error of the interval.
        matters: Smallest difference that matters, in points.

    Example:
        >>> decide([2.0, 2.1, 1.9], 0.05, matters=1.0).shown
        True
    """
    interval = t_interval(differences, level=1 - alpha)
    if interval is None:
        return None
    return Decision(interval.excludes_zero, interval.within(matters), detectable(differences, alpha))


def detectable(differences: Sequence[float], alpha: float) -> float:
    """Return the true difference that a two-sided paired t-test shows with probability `POWER`.

    delta s / sqrt(n), where a noncentral t variable with n - 1 degrees of freedom and noncentrality delta
    exceeds the critical value t_{1 - alpha/2} with probability `POWER`. s is taken for the true deviation.
    """
    n = len(differences)
    delta = float(nctdtrinc(n - 1, 1 - POWER, stdtrit(n - 1, 1 - alpha / 2)))
    return delta * stdev(differences) / math.sqrt(n)
