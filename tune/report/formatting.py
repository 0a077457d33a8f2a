"""Formatting of numbers, settings, intervals and lists of names."""

from collections.abc import Collection
from statistics import mean, stdev

from prometar.metrics import Interval

NONE = "-"
"""Placeholder for missing values."""


def number(value: float | None) -> str:
    """Format a number with two decimals, or None as a dash."""
    return NONE if value is None else f"{value:.2f}"


def setting(value: object) -> str:
    """Format the value of a setting, floats with four significant digits."""
    if value is None:
        return NONE
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def spread(values: Collection[float]) -> str:
    """Format the mean and, for several values, the standard deviation.

    Example:
        >>> spread([60.0, 62.0]), spread([60.0]), spread([])
        ('61.0 ± 1.4', '60.0', '-')
    """
    if not values:
        return NONE
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def points(difference: Interval | None) -> str:
    """Format a mean difference with its interval. If a bound is close to 0, numbers get a second decimal.

    Example:
        >>> points(Interval(2.34, 1.1, 4.06, 5)), points(Interval(0.24, 0.03, 0.45, 5)), points(None)
        ('+2.3 [+1.1, +4.1]', '+0.24 [+0.03, +0.45]', '-')
    """
    if difference is None:
        return NONE
    digits = 1 if min(abs(difference.low), abs(difference.high)) >= 0.05 else 2
    middle, low, high = (f"{x:+.{digits}f}" for x in (difference.mean, difference.low, difference.high))
    return f"{middle} [{low}, {high}]"


def interval(difference: Interval, unit: str, level: str) -> str:
    """Format a mean difference with unit, interval and number of values, for use in a sentence.

    Example:
        >>> interval(Interval(2.34, 1.1, 4.06, 5), "H", "95")
        '+2.3 H (95% CI [+1.1, +4.1], n = 5)'
    """
    middle, bounds = points(difference).split(" ", 1)
    return f"{middle} {unit} ({level}% CI {bounds}, n = {difference.n})"


def listed(names: Collection[object], noun: str = "") -> str:
    """Join names with commas and "and". A noun in front of them is put into the plural if necessary.

    Example:
        >>> listed(["a"]), listed(["a", "b", "c"]), listed([3], "seed"), listed([3, 4], "seed")
        ('a', 'a, b and c', 'seed 3', 'seeds 3 and 4')
    """
    *first, last = map(str, names)
    text = f"{', '.join(first)} and {last}" if first else last
    return f"{noun}{'s' if first else ''} {text}" if noun else text
