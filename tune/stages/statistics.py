"""Statistics of the final test: the stopping rule, and the smallest detectable difference.

A seed pair consists of a run with the selected settings and a baseline run, both with the same seed. The
final test is analyzed up to four times, after 5, 8, 11 and 15 pairs, with a confidence interval each time.
With error probabilities of 5% each, the analyses would too often detect a difference that does not exist.
They therefore share the 5% (Bonferroni). In at least 95% of studies, all four intervals contain the true
difference. So the interval of the last analysis is a *sequential* 95% interval: it holds whenever the test
stops, and for any reason. Source: Jennison and Turnbull, 1989, "Interim analyses: the repeated confidence
interval approach".

With several datasets, each seed pair has one difference, the mean over the datasets. The hypothesis is always
about this mean over the user's datasets. Other datasets may differ from them (`interval_over_datasets`).
"""

import math
from collections.abc import Mapping, Sequence
from statistics import stdev

from scipy.special import nctdtrinc, stdtrit

from prometar.metrics import Interval, t_interval
from tune.config import MAX_SEED_PAIRS

POWER = 0.8
"""Probability with which a test detects the difference that `min_detectable` returns."""
BASELINE_RUNS = 3
"""Runs per dataset, with different seeds, if the baseline is selected and therefore nothing is compared."""
ALPHA_BY_PAIRS: Mapping[int, float] = {5: 0.005, 8: 0.01, 11: 0.015, MAX_SEED_PAIRS: 0.02}
"""Error probability of each analysis, by the number of seed pairs after which it takes place. Later analyses,
which have more power, get more of the 5%."""


def is_decided(differences: Sequence[float], alpha: float, *, min_relevant: float) -> bool:
    """Return True if the interval excludes 0 or lies within ±`min_relevant`, so no more pairs are needed.

    Args:
        differences: Selected minus baseline by seed, in points.
        alpha: Error probability (1 - confidence level) of the interval of the mean difference.
        min_relevant: Smallest relevant difference, in points.

    Example:
        >>> is_decided([2.0, 2.1, 1.9], 0.05, min_relevant=1.0), is_decided([2.0], 0.05, min_relevant=1.0)
        (True, False)
    """
    interval = t_interval(differences, level=1 - alpha)
    return interval is not None and (interval.excludes_zero or interval.within(min_relevant))


def min_detectable(differences: Sequence[float], alpha: float) -> float | None:
    """Return the smallest true difference that a two-sided paired t-test detects with probability `POWER`.

    The result is delta s / sqrt(n), or None if n < 2. Here, s is the sample standard deviation of the n
    differences. A noncentral t variable with n - 1 degrees of freedom and noncentrality delta exceeds the
    critical value t_{1 - alpha/2} with probability `POWER`.

    Args:
        differences: Selected minus baseline by seed, in points.
        alpha: Error probability of the test.
    """
    n = len(differences)
    if n < 2:
        return None
    delta = float(nctdtrinc(n - 1, 1 - POWER, stdtrit(n - 1, 1 - alpha / 2)))
    return delta * stdev(differences) / math.sqrt(n)


def interval_over_datasets(means: Sequence[float]) -> Interval | None:
    """Return a 95% t-interval of the mean difference on other datasets, or None for a single dataset.

    It treats the datasets as a random sample of all datasets. The verdict does not use it.

    Args:
        means: Mean difference over the seed pairs of each dataset.
    """
    return t_interval(means)
