"""Wilcoxon's signed-rank test, exact also where ranks are tied, and Holm's correction for several tests."""

from collections import Counter
from collections.abc import Sequence

_DIGITS = 9
"""Decimals in which percentages are told apart: what is left behind them is rounding, not a difference."""


def rounded(value: float) -> float:
    """A difference of percentages without its rounding errors, so that equal ones are equal."""
    return round(value, _DIGITS)


def midranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1 for the smallest; equal values share the mean of their ranks.

    Example:
        >>> midranks([30.0, 10.0, 30.0, 20.0])
        [3.5, 1.0, 3.5, 2.0]
    """
    known = [rounded(value) for value in values]
    return [sum(v < x for v in known) + (sum(v == x for v in known) + 1) / 2 for x in known]


def signed_rank(differences: Sequence[float]) -> float:
    """The two-sided p-value of paired differences that have the median 0.

    p = 2 P(W <= min(W+, W-)), at most 1. W is the sum of the ranks of |d| that have the sign + if signs are
    drawn, each of the 2^n ways as likely. Differences of 0 are dropped (Wilcoxon, 1945). Equal |d| share the
    mean of their ranks, and the ways are counted over these very ranks: exact with ties too.

    Example:
        >>> signed_rank([1.0, 2.0, 3.0, 4.0, 5.0])  # 2 / 2^5: the least that five can give
        0.0625
    """
    kept = [d for d in map(rounded, differences) if d]
    doubled = [round(2 * rank) for rank in midranks([abs(d) for d in kept])]  # whole numbers
    positive = sum(rank for rank, d in zip(doubled, kept, strict=True) if d > 0)
    smaller = min(positive, sum(doubled) - positive)
    ways = Counter({0: 1})  # to reach a sum with the ranks so far
    for rank in doubled:
        ways += Counter({total + rank: count for total, count in ways.items()})
    extreme = sum(count for total, count in ways.items() if total <= smaller)
    return min(1.0, 2 * extreme / 2 ** len(kept))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): p-values that hold the error of the whole family.

    The k-th smallest of m becomes max over j <= k of min(1, (m - j + 1) p_j).

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected
