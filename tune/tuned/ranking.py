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

    This is the smallest possible p-value. The statistic is then n (k - 1), its largest value, for k methods
    and n datasets. The test compares it with the chi-squared distribution with k - 1 degrees of freedom.

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
        tau_bounds: 2.5% and 97.5% quantiles of tau over the bootstrap samples. Samples in which tau is
            undefined are left out. None if `tau` is None, or undefined in every sample.
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

    Datasets on which a method has no score are left out. On each dataset, only the seeds that all methods
    share are used.

    Args:
        published, tuned: Scores by method, at published settings and after tuning, of the same methods.

    Returns:
        The ranking, or None if there are fewer than two methods or no dataset is left.
    """
    methods = list(published)
    blocks = _blocks(published, tuned)
    if len(methods) < 2 or not blocks:
        return None
    means = np.stack([block.mean(axis=2) for block in blocks.values()])  # (datasets, before/after, methods)
    before = means[:, 0].T
    after = means[:, 1].T
    tau = _tau(average_ranks(before), average_ranks(after))
    samples = [_sample_ranks(blocks, generator) for generator in _generators()]
    sampled_taus = [_tau(ranks_before, ranks_after) for ranks_before, ranks_after, _ in samples]
    defined_taus = [sampled_tau for sampled_tau in sampled_taus if sampled_tau is not None]
    tau_bounds = None
    if tau is not None and defined_taus:
        tau_bounds = _bounds(defined_taus)
    return Ranking(
        datasets=tuple(blocks),
        num_seeds=min(block.shape[2] for block in blocks.values()),
        published=_order(methods, before),
        tuned=_order(methods, after),
        difference=critical_difference(len(methods), len(blocks)),
        tau=tau,
        tau_bounds=tau_bounds,
        same_first=float(np.mean([same_first for _, _, same_first in samples])),
    )


def _blocks(before: Mapping[str, Scores], after: Mapping[str, Scores]) -> dict[str, Floats]:
    """Return arrays of scores of shape (before/after, methods, seeds) by dataset.

    Datasets are left out if a method has no score on them, or if the methods share no seed. The score of a
    method without training is repeated for every seed.

    Args:
        before, after: Scores by method, before and after tuning.
    """
    datasets: dict[str, None] = {}  # a dictionary keeps the order
    for by_method in (before, after):
        for by_dataset in by_method.values():
            datasets |= dict.fromkeys(by_dataset)
    blocks: dict[str, Floats] = {}
    for dataset in datasets:
        scores_before = [before[method].get(dataset, {}) for method in before]
        scores_after = [after[method].get(dataset, {}) for method in before]
        all_scores = [*scores_before, *scores_after]
        seeds = _common_seeds(all_scores)
        if all(all_scores) and seeds:
            blocks[dataset] = np.array([_values(scores_before, seeds), _values(scores_after, seeds)])
    return blocks


def _common_seeds(all_scores: Sequence[Mapping[int, float]]) -> list[int]:
    """Return the seeds that all trained methods share, or only `EVERY_SEED` if no method trains.

    Args:
        all_scores: Scores of each method by seed.
    """
    seeds_of_trained = [set(scores) for scores in all_scores if EVERY_SEED not in scores]
    if not seeds_of_trained:
        return [EVERY_SEED]
    return sorted(set.intersection(*seeds_of_trained))


def _values(all_scores: Sequence[Mapping[int, float]], seeds: Sequence[int]) -> Floats:
    """Return an array of scores of shape (methods, seeds)."""
    rows: list[list[float]] = []
    for scores in all_scores:
        if EVERY_SEED in scores:
            rows.append([scores[EVERY_SEED]] * len(seeds))
        else:
            rows.append([scores[seed] for seed in seeds])
    return np.array(rows, dtype=float)


def _order(methods: Sequence[str], scores: Floats) -> Order:
    """Return the order of methods with scores of shape (methods, datasets)."""
    ranks = average_ranks(scores)
    means = scores.mean(axis=1)
    indices = _best_first(ranks, means)
    return Order(
        ranks={methods[index]: float(ranks[index]) for index in indices},
        means={methods[index]: float(means[index]) for index in indices},
        p=friedman_p(scores),
    )


def _best_first(ranks: Floats, means: Floats) -> list[int]:
    """Return the indices of the methods by average rank. Equal ranks are ordered by mean score."""
    # `lexsort` sorts by the last key first.
    return np.lexsort((-means.round(_DECIMALS), ranks.round(_DECIMALS))).tolist()


def _generators() -> Iterator[np.random.Generator]:
    """Yield a random generator per bootstrap sample."""
    for sequence in np.random.SeedSequence(0).spawn(NUM_BOOTSTRAP_SAMPLES):
        yield np.random.default_rng(sequence)


def _sample_ranks(
    blocks: Mapping[str, Floats], generator: np.random.Generator
) -> tuple[Floats, Floats, bool]:
    """Draw datasets, and seeds of each, with replacement. All methods share the draw, before and after.

    Args:
        blocks: Scores of shape (before/after, methods, seeds) by dataset.

    Returns:
        Average ranks before and after tuning, and True if the same method is first.
    """
    arrays = list(blocks.values())
    means = []
    for dataset in generator.integers(len(arrays), size=len(arrays)):
        block = arrays[dataset]
        seeds = generator.integers(block.shape[2], size=block.shape[2])
        means.append(block[:, :, seeds].mean(axis=2))
    stacked = np.stack(means)  # (datasets, before/after, methods)
    ranks_before = average_ranks(stacked[:, 0].T)
    ranks_after = average_ranks(stacked[:, 1].T)
    mean_before, mean_after = stacked.mean(axis=0)
    first_before = _best_first(ranks_before, mean_before)[0]
    first_after = _best_first(ranks_after, mean_after)[0]
    return ranks_before, ranks_after, first_before == first_after


def _tau(before: Floats, after: Floats) -> float | None:
    if len(set(before)) == 1 or len(set(after)) == 1:  # tau-b divides by 0
        return None
    return float(kendalltau(before, after).statistic)


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
