"""Order of methods before and after tuning: average ranks, tests of them, and how stable the order is.

On each dataset, the method with the highest mean score has rank 1. Ties share the mean of their ranks. The
average rank of a method is its mean rank over the datasets (Demsar, 2006, "Statistical comparisons of
classifiers over multiple data sets", JMLR 7).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, friedmanchisquare, kendalltau, rankdata, studentized_range

from prometar.comparison.paired import EVERY_SEED

ALPHA = 0.05
"""Significance level of all tests."""
NUM_BOOTSTRAP_SAMPLES = 2000
_DECIMALS = 9  # scores are rounded, so that float errors do not break ties

Scores = Mapping[str, Mapping[int, float]]
"""Scores in percent by dataset and seed. A method without training has the single seed `EVERY_SEED`."""
Floats = NDArray[np.float64]


def average_ranks(scores: Floats) -> Floats:
    """Return the average rank of each method. Rank 1 is the highest score.

    Args:
        scores: Scores of shape (methods, datasets).

    Example:
        >>> average_ranks(np.array([[60.0, 70.0], [50.0, 70.0], [40.0, 80.0]])).tolist()
        [1.75, 2.25, 2.0]
    """
    return np.asarray(rankdata(-scores.round(_DECIMALS), axis=0).mean(axis=1))


def friedman_p(scores: Floats) -> float | None:
    """Return the p-value of Friedman's test that all methods have equal ranks.

    Args:
        scores: Scores of shape (methods, datasets).

    Returns:
        The p-value, or None for fewer than three methods, fewer than two datasets, or equal scores only.
    """
    num_methods, num_datasets = scores.shape
    rounded = scores.round(_DECIMALS)
    if num_methods < 3 or num_datasets < 2 or not np.ptp(rounded, axis=0).any():
        return None
    return float(friedmanchisquare(*rounded).pvalue)


def smallest_friedman_p(num_methods: int, num_datasets: int) -> float:
    """Return the p-value of Friedman's test if the methods have the same order on every dataset.

    Example:
        >>> round(smallest_friedman_p(3, 2), 3), round(smallest_friedman_p(3, 4), 3)
        (0.135, 0.018)
    """
    return float(chi2.sf(num_datasets * (num_methods - 1), num_methods - 1))


def critical_difference(num_methods: int, num_datasets: int) -> float:
    """Return Nemenyi's critical difference: methods differ if their average ranks differ by more.

    CD = q sqrt(k (k + 1) / (6 n)) for k methods and n datasets, where q is the 95% quantile of the
    studentized range of k values, divided by sqrt(2).

    Example:
        >>> round(critical_difference(4, 14), 2)  # the example in section 3.2.2 of Demsar (2006)
        1.25
    """
    quantile = float(studentized_range.ppf(1 - ALPHA, num_methods, np.inf)) / math.sqrt(2)
    return quantile * math.sqrt(num_methods * (num_methods + 1) / (6 * num_datasets))


def indistinct_groups(ranks: Sequence[float], difference: float) -> list[tuple[int, int]]:
    """Return the largest groups of methods whose average ranks differ by at most the critical difference.

    Args:
        ranks: Average ranks in ascending order.

    Returns:
        First and last index of each group of at least two methods.

    Example:
        >>> indistinct_groups([1.0, 1.5, 2.5, 4.0], 1.6)
        [(0, 2), (2, 3)]
    """
    groups: list[tuple[int, int]] = []
    for first, rank in enumerate(ranks):
        last = max(index for index, other in enumerate(ranks) if other - rank <= difference)
        if last > first and (not groups or last > groups[-1][1]):
            groups.append((first, last))
    return groups


@dataclass(frozen=True)
class Order:
    """Order of the methods at published settings, or after tuning.

    Args:
        ranks, means: Average rank, and mean score over the datasets, by method in order of the ranks.
        p: p-value of Friedman's test, None if it cannot be computed.
    """

    ranks: Mapping[str, float]
    means: Mapping[str, float]
    p: float | None

    @property
    def methods(self) -> list[str]:
        """Methods, best first."""
        return list(self.ranks)


@dataclass(frozen=True)
class Ranking:
    """Orders of the methods before and after tuning, and their agreement.

    Args:
        datasets: Datasets on which every method has scores. Only these are used.
        num_seeds: Smallest number of seeds on a dataset.
        difference: Nemenyi's critical difference of average ranks.
        tau: Kendall's tau-b of both sets of average ranks, None if all ranks of a set are equal.
        tau_bounds: 2.5% and 97.5% quantiles of tau over the bootstrap samples. None if tau is.
        same_first: Share of the bootstrap samples in which the same method is first before and after tuning.
    """

    datasets: tuple[str, ...]
    num_seeds: int
    published: Order
    tuned: Order
    difference: float
    tau: float | None
    tau_bounds: tuple[float, float] | None
    same_first: float

    @property
    def num_methods(self) -> int:
        return len(self.published.ranks)


def rank_methods(published: Mapping[str, Scores], tuned: Mapping[str, Scores]) -> Ranking | None:
    """Rank the methods before and after tuning.

    Datasets on which a method has no score are left out. On each dataset, seeds are those of all methods.

    Args:
        published, tuned: Scores by method.

    Returns:
        The ranking, or None if there are fewer than two methods or no dataset is left.
    """
    methods = list(published)
    blocks = _blocks([published, tuned], methods)
    if len(methods) < 2 or not blocks:
        return None
    means = np.stack([block.mean(axis=2) for block in blocks.values()])  # (datasets, settings, methods)
    orders = [_order(methods, means[:, index].T) for index in (0, 1)]
    samples = [_sample_ranks(blocks, generator) for generator in _generators()]
    taus = [tau for before, after, _ in samples if (tau := _tau(before, after)) is not None]
    tau = _tau(*(np.array([order.ranks[method] for method in methods]) for order in orders))
    return Ranking(
        datasets=tuple(blocks),
        num_seeds=min(block.shape[2] for block in blocks.values()),
        published=orders[0],
        tuned=orders[1],
        difference=critical_difference(len(methods), len(blocks)),
        tau=tau,
        tau_bounds=None if tau is None or not taus else _bounds(taus),
        same_first=float(np.mean([same_first for _, _, same_first in samples])),
    )


def _blocks(settings: Sequence[Mapping[str, Scores]], methods: Sequence[str]) -> dict[str, Floats]:
    """Return arrays of shape (settings, methods, seeds) by dataset."""
    blocks: dict[str, Floats] = {}
    datasets = dict.fromkeys(name for by_method in settings for each in by_method.values() for name in each)
    for dataset in datasets:
        cells = [[by_method[method].get(dataset, {}) for method in methods] for by_method in settings]
        flat = [cell for row in cells for cell in row]
        trained = [set(cell) for cell in flat if EVERY_SEED not in cell]
        seeds = sorted(set.intersection(*trained)) if trained else [EVERY_SEED]
        if all(flat) and seeds:
            rows = [[[cell.get(seed, cell.get(EVERY_SEED)) for seed in seeds] for cell in r] for r in cells]
            blocks[dataset] = np.array(rows, dtype=float)
    return blocks


def _order(methods: Sequence[str], scores: Floats) -> Order:
    """Return the order of methods with scores of shape (methods, datasets)."""
    ranks = average_ranks(scores)
    means = scores.mean(axis=1)
    indices = np.lexsort((-means.round(_DECIMALS), ranks.round(_DECIMALS)))
    return Order(
        ranks={methods[index]: float(ranks[index]) for index in indices},
        means={methods[index]: float(means[index]) for index in indices},
        p=friedman_p(scores),
    )


def _generators() -> Iterator[np.random.Generator]:
    """Yield a random generator per bootstrap sample."""
    for sequence in np.random.SeedSequence(0).spawn(NUM_BOOTSTRAP_SAMPLES):
        yield np.random.default_rng(sequence)


def _sample_ranks(
    blocks: Mapping[str, Floats], generator: np.random.Generator
) -> tuple[Floats, Floats, bool]:
    """Draw datasets, and seeds of each, with replacement. All methods and settings share the draw.

    Returns:
        Average ranks before and after tuning, and True if the same method is first.
    """
    arrays = list(blocks.values())
    means = []
    for dataset in generator.integers(len(arrays), size=len(arrays)):
        block = arrays[dataset]
        seeds = generator.integers(block.shape[2], size=block.shape[2])
        means.append(block[:, :, seeds].mean(axis=2))
    stacked = np.stack(means)  # (datasets, settings, methods)
    ranks = [average_ranks(stacked[:, index].T) for index in (0, 1)]
    overall = stacked.mean(axis=0)
    firsts = [
        np.lexsort((-overall[index].round(_DECIMALS), ranks[index].round(_DECIMALS)))[0] for index in (0, 1)
    ]
    return ranks[0], ranks[1], bool(firsts[0] == firsts[1])


def _tau(before: Floats, after: Floats) -> float | None:
    if len(set(before)) == 1 or len(set(after)) == 1:  # tau-b divides by 0
        return None
    return float(kendalltau(before, after).statistic)


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
