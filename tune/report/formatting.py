"""Formatting of numbers, settings, differences and lists."""

from collections.abc import Collection
from statistics import mean, stdev

from prometar.metrics import Interval

DASH = "-"
"""Placeholder for missing values."""


def format_number(value: float | None) -> str:
    """Format a number with two decimals, or None as a dash."""
    return DASH if value is None else f"{value:.2f}"


def format_setting(value: object) -> str:
    """Format a setting's value: floats with four significant digits, None as a dash."""
    if value is None:
        return DASH
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def format_mean(values: Collection[float]) -> str:
    """Format the mean and, for several values, the standard deviation.

    Example:
        >>> format_mean([60.0, 62.0])
        '61.0 ± 1.4'
        >>> format_mean([60.0])
        '60.0'
        >>> format_mean([])
        '-'
    """
    if not values:
        return DASH
    if len(values) == 1:
        return f"{mean(values):.1f}"
    return f"{mean(values):.1f} ± {stdev(values):.1f}"


def format_difference(difference: Interval) -> tuple[str, str]:
    """Return the mean difference and the confidence interval as text, e.g. "+2.3" and "[+1.1, +4.1]".

    Numbers have one decimal, or two if a bound is closer to 0 than 0.05.

    Example:
        >>> format_difference(Interval(2.34, 1.1, 4.06, 5))
        ('+2.3', '[+1.1, +4.1]')
        >>> format_difference(Interval(0.24, 0.03, 0.45, 5))
        ('+0.24', '[+0.03, +0.45]')
    """
    digits = 1 if min(abs(difference.low), abs(difference.high)) >= 0.05 else 2
    center = f"{difference.mean:+.{digits}f}"
    low = f"{difference.low:+.{digits}f}"
    high = f"{difference.high:+.{digits}f}"
    return center, f"[{low}, {high}]"


def describe_difference(difference: Interval, interval_name: str = "95% CI") -> str:
    """Format a mean difference in points, with its confidence interval.

    Example:
        >>> describe_difference(Interval(2.34, 1.1, 4.06, 5))
        '+2.3 points (95% CI [+1.1, +4.1], n = 5)'
    """
    center, bounds = format_difference(difference)
    return f"{center} points ({interval_name} {bounds}, n = {difference.n})"


def phrase(words: Collection[object], noun: str = "") -> str:
    """Join at least one word with commas and "and". Put `noun` first, in the plural for several words.

    Example:
        >>> phrase(["a"])
        'a'
        >>> phrase(["a", "b", "c"])
        'a, b and c'
        >>> phrase([3], "seed")
        'seed 3'
        >>> phrase([3, 4], "seed")
        'seeds 3 and 4'
    """
    *first, last = map(str, words)
    text = f"{', '.join(first)} and {last}" if first else last
    if not noun:
        return text
    return f"{noun}s {text}" if first else f"{noun} {text}"
