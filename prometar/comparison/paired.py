"""Differences between methods, paired by dataset and seed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from scipy.stats import wilcoxon

from prometar.metrics import Interval, t_interval

EVERY_SEED = -1
"""Seed of a method without training. Its score is paired with every seed of other methods."""
Scores = Mapping[str, Mapping[int, float]]
"""Scores of one method on one dataset in percent, by metric (or column, such as "4 shots") and seed."""
Results = Mapping[str, Mapping[str, Scores]]
"""Scores by method and dataset."""

_DECIMALS = 9  # Means are rounded, so that float errors do not break ties of the Wilcoxon test.


@dataclass(frozen=True)
class Difference:
    """Difference between a method and the reference in one metric, in percentage points.

    Args:
        metric: Name of the metric, such as "H".
        method: Method from whose scores those of the reference are subtracted.
        reference: Method whose scores are subtracted.
        by_dataset: Differences by dataset: one per shared seed, or a single one if neither method trains.
        p: p-value of the two-sided Wilcoxon signed-rank test over datasets, or None for a single dataset.
        p_holm: `p` after Holm's correction for the number of methods compared on this metric.
    """

    metric: str
    method: str
    reference: str
    by_dataset: Mapping[str, tuple[float, ...]]
    p: float | None
    p_holm: float | None

    @property
    def values(self) -> tuple[float, ...]:
        """Mean difference of each dataset. For a single dataset, the difference of each seed instead."""
        if len(self.by_dataset) > 1:
            return _means(self.by_dataset)
        (differences_by_seed,) = self.by_dataset.values()
        return differences_by_seed

    @property
    def unit(self) -> str:
        """Sampling unit of `values`: "datasets" or "seeds"."""
        return "datasets" if len(self.by_dataset) > 1 else "seeds"

    @property
    def interval(self) -> Interval | None:
        """95% t-interval of `values`, or None for a single value."""
        return t_interval(self.values)


def compare(
    results: Results, *, reference: str, metrics: Sequence[str]
) -> tuple[list[Difference], list[str]]:
    """Subtract the reference's scores from every other method's scores on the same dataset and seed.

    Returns:
        The differences, ordered by metric and method, and notes on missing runs.

    Example:
        >>> scores_a = {"H": {1: 60.0, 2: 64.0}}
        >>> scores_b = {"H": {1: 61.0, 2: 66.0}}
        >>> results = {"a": {"dtd": scores_a}, "b": {"dtd": scores_b}}
        >>> differences, notes = compare(results, reference="a", metrics=["H"])
        >>> differences[0].values
        (1.0, 2.0)
    """
    differences: list[Difference] = []
    for metric in metrics:
        paired: dict[str, dict[str, tuple[float, ...]]] = {}
        for method, scores in results.items():
            by_dataset = _differences(scores, results[reference], metric)
            if method != reference and by_dataset:
                paired[method] = by_dataset
        p_values = [_p_value(by_dataset) for by_dataset in paired.values()]
        corrected = holm(p_values)
        for (method, by_dataset), p, p_holm in zip(paired.items(), p_values, corrected, strict=True):
            differences.append(Difference(metric, method, reference, by_dataset, p=p, p_holm=p_holm))
    return differences, list(_missing_run_notes(results))


def _differences(
    method_scores: Mapping[str, Scores], reference_scores: Mapping[str, Scores], metric: str
) -> dict[str, tuple[float, ...]]:
    """Return the differences by dataset: one per shared seed, or a single one if neither method trains."""
    differences: dict[str, tuple[float, ...]] = {}
    for dataset, by_metric in reference_scores.items():
        of_method = method_scores.get(dataset, {}).get(metric, {})
        of_reference = by_metric.get(metric, {})
        values: list[float] = []
        for seed in _shared_seeds(of_method, of_reference):
            values.append(_score(of_method, seed) - _score(of_reference, seed))
        if values:
            differences[dataset] = tuple(values)
    return differences


def _shared_seeds(a: Mapping[int, float], b: Mapping[int, float]) -> list[int]:
    """Return the seeds of both methods. A method without training has every seed."""
    if EVERY_SEED in a and EVERY_SEED in b:
        return [EVERY_SEED]
    if EVERY_SEED in a:
        return sorted(b)
    if EVERY_SEED in b:
        return sorted(a)
    return sorted(a.keys() & b.keys())


def _score(by_seed: Mapping[int, float], seed: int) -> float:
    """Return the score of a seed, or the only score of a method without training."""
    return by_seed[EVERY_SEED] if EVERY_SEED in by_seed else by_seed[seed]


def _means(by_dataset: Mapping[str, tuple[float, ...]]) -> tuple[float, ...]:
    """Return the mean difference of each dataset over its seeds."""
    return tuple(round(mean(differences), _DECIMALS) for differences in by_dataset.values())


def _p_value(by_dataset: Mapping[str, tuple[float, ...]]) -> float | None:
    """Return the p-value of the Wilcoxon test over datasets, or None for a single dataset."""
    means = _means(by_dataset)
    if len(means) < 2:
        return None
    if all(value == 0 for value in means):  # the test is undefined
        return 1.0
    return float(wilcoxon(means).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Apply Holm's step-down correction. None entries stay None.

    Example:
        >>> holm([0.125, 0.25, None])
        [0.25, 0.25, None]
    """
    corrected = list(p_values)
    largest = 0.0
    ascending = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    for rank, (p, index) in enumerate(ascending):
        num_left = len(ascending) - rank
        # A corrected p-value is at least as large as that of any smaller p-value.
        largest = max(largest, min(1.0, num_left * p))
        corrected[index] = largest
    return corrected


def correct_for_all(differences: Sequence[Difference]) -> list[Difference]:
    """Return the differences ordered by metric, with Holm's correction over all differences in a metric.

    `compare` corrects only for the methods of one comparison. This function corrects for the methods of all
    comparisons whose differences are joined.
    """
    by_metric: dict[str, list[Difference]] = {}
    for difference in differences:
        by_metric.setdefault(difference.metric, []).append(difference)
    corrected: list[Difference] = []
    for group in by_metric.values():
        p_values = holm([difference.p for difference in group])
        for difference, p_holm in zip(group, p_values, strict=True):
            corrected.append(replace(difference, p_holm=p_holm))
    return corrected


def _seeds_of(scores: Scores) -> set[int]:
    """Return the seeds for which there is a score in any metric."""
    seeds: set[int] = set()
    for by_seed in scores.values():
        seeds.update(by_seed)
    return seeds


def _missing_run_notes(results: Results) -> Iterator[str]:
    """Yield a note for each method without runs on a dataset, or without a seed that another method has."""
    datasets: dict[str, None] = {}  # a set that keeps the order
    for by_dataset in results.values():
        datasets |= dict.fromkeys(by_dataset)
    for dataset in datasets:
        seeds_by_method: dict[str, set[int]] = {}
        for method, by_dataset in results.items():
            seeds_by_method[method] = _seeds_of(by_dataset.get(dataset, {}))
        all_seeds = set.union(*seeds_by_method.values()) - {EVERY_SEED}
        for method, seeds in seeds_by_method.items():
            if not seeds:
                yield f"Not paired: {method} has no run on {dataset}."
            elif EVERY_SEED not in seeds and seeds != all_seeds:
                missing = sorted(all_seeds - seeds)
                listed = " or ".join(map(str, missing))
                yield f"Not paired: {method} has no run on {dataset} with seed {listed}."
