"""Harmonic means and confidence intervals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

ACCURACY = "accuracy"
HARMONIC = "H"
"""Metrics: accuracy on all classes, and harmonic mean of the accuracies on base (trained) and new classes."""


@dataclass(frozen=True)
class Interval:
    """Mean of n values and its confidence interval."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """True if the interval does not contain zero."""
        return self.low > 0 or self.high < 0

    def within(self, margin: float) -> bool:
        """Return True if the interval lies between -margin and margin."""
        return -margin < self.low and self.high < margin


def t_interval(values: Sequence[float], *, level: float = 0.95) -> Interval | None:
    """Return the t-interval of the mean at confidence `level`, or None if there are fewer than 2 values.

    The bounds are mean ± t s / sqrt(n), where n is the number of values, s is their standard deviation, and t
    is the two-sided quantile for n - 1 degrees of freedom.

    Example:
        >>> interval = t_interval([1.0, 2.0, 3.0])
        >>> round(interval.low, 2), round(interval.high, 2)
        (-0.48, 4.48)
    """
    from scipy.special import stdtrit  # this import takes 0.3 s, too long for --help

    n = len(values)
    if n < 2:
        return None
    half_width = float(stdtrit(n - 1, (1 + level) / 2)) * stdev(values) / math.sqrt(n)
    center = mean(values)
    return Interval(center, center - half_width, center + half_width, n)


def harmonic_mean(accuracies: Mapping[str, float]) -> float:
    """Return n / sum(1/a) for n accuracies a in percent, or 0 if one of them is 0.

    Example:
        >>> round(harmonic_mean({"base": 80.0, "new": 60.0}), 2)
        68.57
    """
    values = list(accuracies.values())
    if min(values) <= 0:
        return 0.0
    return len(values) / sum(1 / value for value in values)
