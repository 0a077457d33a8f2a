"""When the final test has seen enough seed pairs.

Stopping as soon as a repeated test shows something finds differences that do not exist. The 5 % error of the
final test is therefore divided over four interim analyses (Bonferroni): their intervals contain the true
difference together in at least 95 of 100 studies.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import stdev

from scipy.special import nctdtrinc, stdtrit

from prometar.metrics import Interval, t_interval
from tune.config import MAX_SEED_PAIRS

POWER = 0.8
BASELINE_RUNS = 3
"""Runs of the baseline if it was selected itself, so that there is nothing to compare."""
INTERIM_ANALYSES: Mapping[int, float] = {5: 0.005, 8: 0.01, 11: 0.015, MAX_SEED_PAIRS: 0.02}
"""Error probability of the analysis after so many seed pairs. Later analyses have more power, so most of the
error is left to them."""


def over_all(differences: Sequence[Interval | None]) -> Interval | None:
    """Return the interval of one dataset, or the 95% t-interval over the means of several."""
    if len(differences) == 1:
        return differences[0]
    return t_interval([each.mean for each in differences if each])


def is_decided(differences: Sequence[float], alpha: float, *, matters: float) -> bool:
    """Return True if more seed pairs cannot change the verdict.

    The interval of the mean difference excludes 0, or every difference that matters.

    Args:
        differences: Selected minus baseline by seed, in points.
        alpha: Error of the interval.
        matters: Smallest difference that matters, in points.

    Example:
        >>> is_decided([2.0, 2.1, 1.9], 0.05, matters=1.0), is_decided([2.0], 0.05, matters=1.0)
        (True, False)
    """
    interval = t_interval(differences, level=1 - alpha)
    return interval is not None and (interval.excludes_zero or interval.within(matters))


def detectable(differences: Sequence[float], alpha: float) -> float | None:
    """Return the true difference that a two-sided paired t-test shows with probability `POWER`.

    delta s / sqrt(n), where a noncentral t variable with n - 1 degrees of freedom and noncentrality delta
    exceeds the critical value t_{1 - alpha/2} with probability `POWER`. s is taken for the true deviation.
    None for fewer than two differences.
    """
    n = len(differences)
    if n < 2:
        return None
    delta = float(nctdtrinc(n - 1, 1 - POWER, stdtrit(n - 1, 1 - alpha / 2)))
    return delta * stdev(differences) / math.sqrt(n)
