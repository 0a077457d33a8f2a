"""Means that figures are reported as, and how sure they are."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, mean, stdev

from scipy.special import stdtrit

ACCURACY, HARMONIC = "accuracy", "H"
"""What tables call the accuracy on all classes, and the harmonic mean of base and new accuracy."""


@dataclass(frozen=True)
class Interval:
    """A mean of n values with its t-interval."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def within(self, size: float) -> bool:
        """Whether every value of the interval is smaller than `size`, whatever its sign."""
        return -size < self.low and self.high < size


def t_interval(values: Sequence[float], *, level: float = 0.95) -> Interval | None:
    """mean +- t s / sqrt(n) with the two-sided t-quantile of n - 1 degrees of freedom; None for n < 2.

    `level`: the share of such intervals that hold the true mean (default 0.95).

    Example:
        >>> interval = t_interval([1.0, 2.0, 3.0])
        >>> round(interval.low, 2), round(interval.high, 2)
        (-0.48, 4.48)
    """
    n = len(values)
    if n < 2:
        return None
    half = float(stdtrit(n - 1, (1 + level) / 2)) * stdev(values) / math.sqrt(n)
    middle = mean(values)
    return Interval(middle, middle - half, middle + half, n)


def over_all(differences: Sequence[Interval | None], *, level: float = 0.95) -> Interval | None:
    """The one data set's difference; of several, the interval over their mean differences."""
    if len(differences) == 1:
        return differences[0]
    return t_interval([each.mean for each in differences if each], level=level)


def is_percent(value: object) -> bool:
    """Whether something read from a file is a finite number from 0 to 100.

    Example:
        >>> is_percent(50), is_percent(True), is_percent(float("nan")), is_percent("50")
        (True, False, False, False)
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 100


def wilson_interval(share: float, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's interval of a share in percent, as n independent draws gave it: of images that were right.

    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    Example:
        >>> interval = wilson_interval(50.0, 100)
        >>> round(interval.low, 1), round(interval.high, 1)
        (40.4, 59.6)
    """
    p, z = share / 100, NormalDist().inv_cdf((1 + level) / 2)
    middle, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = (100 * (middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    return Interval(share, low, high, n)


def harmonic_mean(accuracies: Mapping[str, float]) -> float:
    """n / sum(1/a) of accuracies in percent; 0 where one of them is 0.

    Example:
        >>> round(harmonic_mean({"base": 80.0, "new": 60.0}), 2)
        68.57
    """
    values = list(accuracies.values())
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / value for value in values)
