"""Methods against one of them, paired by data set and seed: a pure function of the runs' figures."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean

from prometar.comparison.signed_rank import holm, midranks, rounded, signed_rank
from prometar.config.settings import Config
from prometar.metrics import Interval, t_interval

EVERY_SEED = -1
"""The seed of what learns nothing: its figure is paired with each seed of the others."""
Scores = Mapping[str, Mapping[int, float]]
"""Percent by column and seed, of one method on one data set."""
Results = Mapping[str, Mapping[str, Scores]]
"""Scores by method and data set."""


@dataclass(frozen=True)
class Difference:
    """A method's figure in a column minus the reference's, in points.

    Args:
        by_dataset: The differences of each data set, one a seed that both have.
    """

    by_dataset: Mapping[str, tuple[float, ...]]

    @cached_property
    def means(self) -> tuple[float, ...]:
        """Over seeds, one a data set."""
        return tuple(mean(singles) for singles in self.by_dataset.values())

    @property
    def mean(self) -> float:
        """Over seeds, then over data sets."""
        return mean(self.means)

    @property
    def over(self) -> str:
        """What the interval is over."""
        return "data sets" if len(self.means) > 1 else "seeds"

    @property
    def singles(self) -> tuple[float, ...]:
        """What the interval is made of: the mean of each data set; of a lone one, its seeds."""
        return self.means if len(self.means) > 1 else next(iter(self.by_dataset.values()))

    @property
    def interval(self) -> Interval | None:
        """95 % t-interval; None for one pair."""
        return t_interval(self.singles)

    @property
    def p(self) -> float | None:
        """Of the signed-rank test over data sets; None for one data set."""
        return signed_rank(self.means) if len(self.means) > 1 else None

    @property
    def wins_ties_losses(self) -> tuple[int, int, int]:
        """Data sets on which the method is above, equal to and below the reference."""
        signs = [(d > 0) - (d < 0) for d in map(rounded, self.means)]
        return signs.count(1), signs.count(0), signs.count(-1)


@dataclass(frozen=True)
class Column:
    """One column, by method.

    Args:
        differences: To the reference. holm: Their p-values with Holm's correction.
        ranked: Data sets on which all methods have a seed in common.
        ranks: Average places over these: 1 is best, equal ones share theirs.
    """

    name: str
    differences: Mapping[str, Difference]
    holm: Mapping[str, float]
    ranked: tuple[str, ...]
    ranks: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """Methods against a reference.

    Args:
        methods: All, in the order of tables. reference: One of them.
        remarks: What could not be paired, and what else must be said, in sentences.
    """

    title: str
    reference: str
    methods: tuple[str, ...]
    columns: tuple[Column, ...]
    remarks: tuple[str, ...]

    @property
    def differences(self) -> list[Difference]:
        """Of all columns; empty where nothing could be paired."""
        return [difference for column in self.columns for difference in column.differences.values()]

    @property
    def datasets(self) -> tuple[str, ...]:
        """On which anything was paired, in the order of the results."""
        return tuple(dict.fromkeys(name for d in self.differences for name in d.by_dataset))


def default_reference(methods: Sequence[str]) -> str:
    """The method that a configuration has by default, prometar, or the first where it is not among them."""
    return Config().method if Config().method in methods else methods[0]


def compare(results: Results, *, reference: str, columns: Sequence[str], title: str = "") -> Comparison:
    """Each method minus the reference on the same data set and seed, with what can be said of it.

    Example:
        >>> results = {"a": {"dtd": {"H": {1: 60.0, 2: 64.0}}}, "b": {"dtd": {"H": {1: 61.0, 2: 66.0}}}}
        >>> compare(results, reference="a", columns=["H"]).columns[0].differences["b"].mean
        1.5
    """
    made = tuple(_column(results, reference, column) for column in columns)
    return Comparison(title, reference, tuple(results), made, tuple(_missing(results, columns)))


def _column(results: Results, reference: str, column: str) -> Column:
    others = (method for method in results if method != reference)
    pairs = {method: _pairs(results[method], results[reference], column) for method in others}
    differences = {method: Difference(found) for method, found in pairs.items() if found}
    tested = {m: p for m, d in differences.items() if (p := d.p) is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    return Column(column, differences, corrected, *_ranks(results, column))


def _pairs(
    ours: Mapping[str, Scores], theirs: Mapping[str, Scores], column: str
) -> dict[str, tuple[float, ...]]:
    found: dict[str, tuple[float, ...]] = {}
    for dataset in theirs:
        a, b = ours.get(dataset, {}).get(column, {}), theirs[dataset].get(column, {})
        if singles := tuple(_at(a, seed) - _at(b, seed) for seed in _in_common(a, b)):
            found[dataset] = singles
    return found


def _in_common(*scores: Mapping[int, float]) -> list[int]:
    """The seeds that all have; EVERY_SEED where all are the same for every one, so that they count once."""
    own = [set(by_seed) for by_seed in scores if EVERY_SEED not in by_seed]
    return sorted(set.intersection(*own)) if own else [EVERY_SEED]


def _at(by_seed: Mapping[int, float], seed: int) -> float:
    return by_seed[seed] if seed in by_seed else by_seed[EVERY_SEED]


def _ranks(results: Results, column: str) -> tuple[tuple[str, ...], dict[str, float]]:
    """A method without any figure in the column has no rank, and keeps no data set from being ranked."""
    methods = [m for m in results if any(s.get(column) for s in results[m].values())]
    ranks: dict[str, list[float]] = {}
    for dataset in dict.fromkeys(name for m in methods for name in results[m]):
        scores = [results[m].get(dataset, {}).get(column, {}) for m in methods]
        if common := _in_common(*scores):
            ranks[dataset] = midranks([-mean(_at(s, seed) for seed in common) for s in scores])
    places = zip(*ranks.values(), strict=True)
    return tuple(ranks), dict(zip(methods, map(mean, places), strict=True)) if ranks else {}


def _missing(results: Results, columns: Sequence[str]) -> list[str]:
    """For each method, the seeds that others have and it has not."""
    whole: dict[str, set[int]] = {}
    for scores_of in results.values():
        for dataset, scores in scores_of.items():
            whole.setdefault(dataset, set()).update(*(scores.get(column, {}) for column in columns))
    lines = []
    for method, scores_of in results.items():
        lacking = []
        for dataset, seeds in whole.items():
            scores = scores_of.get(dataset, {})
            has = set.intersection(*(set(scores.get(column, {})) for column in columns))
            wanted = seeds - has - ({EVERY_SEED} if has else set())
            if wanted and EVERY_SEED not in has:
                lacking.append(f"{dataset} {seeds_text(wanted)}".strip())
        if lacking:
            lines.append(f"not paired, for want of runs of {method}: {', '.join(lacking)}")
    return lines


def seeds_text(seeds: Collection[int]) -> str:
    """
    Example:
        >>> seeds_text({2}), seeds_text({3, 1}), seeds_text({EVERY_SEED})
        ('seed 2', 'seeds 1 3', '')
    """
    own = sorted(set(seeds) - {EVERY_SEED})
    return f"seed{'s' if len(own) > 1 else ''} {' '.join(map(str, own))}" if own else ""
