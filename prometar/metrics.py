"""How sure a mean over a few seeds is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

# Two-sided 95 % quantiles of Student's t by degrees of freedom.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """A mean of n values with its 95 % t-interval."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def t_interval(values: Sequence[float]) -> Interval | None:
    """mean +- t(n-1) s / sqrt(n); None for fewer than two values.

    Example:
        >>> interval = t_interval([1.0, 2.0, 3.0])
        >>> round(interval.low, 2), round(interval.high, 2)
        (-0.48, 4.48)
    """
    n = len(values)
    if n < 2:
        return None
    t = _T95[min(n - 2, len(_T95) - 1)]  # beyond the table: a little too wide, never too narrow
    half = t * stdev(values) / math.sqrt(n)
    middle = mean(values)
    return Interval(middle, middle - half, middle + half, n)
