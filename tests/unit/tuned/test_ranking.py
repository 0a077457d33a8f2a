"""Ranks, tests and the stability of an order, against published and hand-computed values."""

from collections.abc import Mapping

import numpy as np
import pytest
from scipy.stats import chi2

from prometar.comparison.paired import EVERY_SEED
from tune.tuned.ranking import (
    Ranking,
    average_ranks,
    critical_difference,
    friedman_p,
    indistinct_groups,
    rank_methods,
    smallest_friedman_p,
)
from tune.tuned.statements import answer


def test_average_ranks_share_ties() -> None:
    scores = np.array([[0.763, 0.936, 1.0], [0.768, 0.931, 1.0], [0.771, 0.916, 1.0], [0.798, 0.931, 1.0]])
    ranks = [(4 + 1 + 2.5) / 3, (3 + 2.5 + 2.5) / 3, (2 + 4 + 2.5) / 3, (1 + 2.5 + 2.5) / 3]
    assert average_ranks(scores) == pytest.approx(ranks)


def test_friedmans_test_by_its_formula() -> None:
    """Without ties, the statistic is 12 n / (k (k + 1)) (sum of squared average ranks - k (k + 1)^2 / 4)."""
    scores = np.random.default_rng(5).random((4, 6))
    squares = float((average_ranks(scores) ** 2).sum())
    statistic = 12 * 6 / (4 * 5) * (squares - 4 * 25 / 4)
    assert friedman_p(scores) == pytest.approx(chi2.sf(statistic, 3))


def test_friedmans_test_by_hand() -> None:
    """Three methods in the same order on three datasets: the statistic is n (k - 1) = 6, so p = exp(-3)."""
    scores = np.array([[3.0, 3.0, 3.0], [2.0, 2.0, 2.0], [1.0, 1.0, 1.0]])
    assert friedman_p(scores) == pytest.approx(np.exp(-3))
    assert smallest_friedman_p(3, 3) == pytest.approx(np.exp(-3))


@pytest.mark.parametrize("shape", [(2, 9), (9, 1)], ids=["two methods", "one dataset"])
def test_friedmans_test_needs_three_methods_and_two_datasets(shape: tuple[int, int]) -> None:
    assert friedman_p(np.random.default_rng(0).random(shape)) is None


def test_friedmans_test_of_equal_methods_has_no_p() -> None:
    assert friedman_p(np.full((3, 4), 50.0)) is None


@pytest.mark.parametrize(
    ("num_methods", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (8, 3.031), (10, 3.164)]
)
def test_nemenyis_critical_values_are_those_of_the_published_table(num_methods: int, q: float) -> None:
    """Table 5a of Demsar (2006)."""
    num_datasets = num_methods * (num_methods + 1) / 6
    difference = critical_difference(num_methods, 1) / num_datasets**0.5
    assert difference == pytest.approx(q, abs=1.1e-3)


def test_groups_of_methods_that_do_not_differ() -> None:
    assert indistinct_groups([1.0, 2.0, 3.0], 5.0) == [(0, 2)]
    assert indistinct_groups([1.0, 3.0, 5.0], 1.0) == []
    assert indistinct_groups([1.0, 1.2, 3.0, 3.1], 0.5) == [(0, 1), (2, 3)]


def scores(**means: float) -> Mapping[str, dict[str, dict[int, float]]]:
    """Scores of methods on three datasets and five seeds, without noise between methods."""
    return {
        method: {f"data{k}": {seed: mean + 3 * k + seed for seed in range(1, 6)} for k in range(3)}
        for method, mean in means.items()
    }


def ranked(published: Mapping, tuned: Mapping) -> Ranking:
    ranking = rank_methods(published, tuned)
    assert ranking is not None
    return ranking


def test_an_order_that_survives() -> None:
    ranking = ranked(scores(a=60, b=50, c=40), scores(a=61, b=52, c=43))
    assert ranking.published.methods == ranking.tuned.methods == ["a", "b", "c"]
    assert ranking.published.ranks == {"a": 1, "b": 2, "c": 3}
    assert (ranking.tau, ranking.tau_bounds, ranking.same_first) == (1.0, (1.0, 1.0), 1.0)
    assert ranking.published.p == pytest.approx(np.exp(-3))
    assert ranking.published.means == {"a": 66, "b": 56, "c": 46}


def test_an_order_that_is_reversed() -> None:
    ranking = ranked(scores(a=60, b=50, c=40), scores(a=60, b=65, c=70))
    assert ranking.tuned.methods == ["c", "b", "a"]
    assert (ranking.tau, ranking.same_first) == (-1.0, 0.0)


def test_two_methods_that_differ_by_chance_only_often_change_places() -> None:
    draw = np.random.default_rng(1)

    def noisy(*methods: str) -> dict[str, dict[str, dict[int, float]]]:
        names = [f"data{k}" for k in range(4)]
        return {
            method: {name: {seed: 60 + draw.normal() for seed in range(5)} for name in names}
            for method in methods
        }

    ranking = ranked(noisy("a", "b", "c"), noisy("a", "b", "c"))
    assert 0.1 < ranking.same_first < 0.9
    assert ranking.tau_bounds is not None
    assert ranking.tau_bounds[0] < 0 < ranking.tau_bounds[1]


def test_the_share_of_the_bootstrap_is_not_attributed_to_a_method() -> None:
    """In a sample, another method may be the first one before and after tuning."""
    before = {"a": {"d": {1: 60.0, 2: 50.0}}, "b": {"d": {1: 50.0, 2: 59.0}}, "c": {"d": {1: 2.0, 2: 2.0}}}
    after = {**before, "b": {"d": {1: 1.0, 2: 59.0}}, "c": {"d": {1: 40.0, 2: 40.0}}}
    ranking = ranked(before, after)
    assert ranking.published.methods == ["a", "b", "c"]
    assert ranking.tuned.methods == ["a", "c", "b"]
    share = f"In {ranking.same_first:.0%} of the bootstrap samples, "
    assert answer(ranking).endswith(share + "the first method is the same before and after.")
    assert answer(None).startswith("The order of the methods is unknown. It needs at least two methods")


def test_the_bootstrap_is_reproducible() -> None:
    before = scores(a=60, b=59)
    after = scores(a=60, b=61)
    assert ranked(before, after) == ranked(before, after)


def test_datasets_without_scores_of_a_method_and_seeds_without_a_run_are_left_out() -> None:
    before = scores(a=60, b=50)
    after = scores(a=60, b=50)
    del after["b"]["data2"]
    del before["a"]["data1"][3]
    ranking = ranked(before, after)
    assert (ranking.datasets, ranking.num_seeds) == (("data0", "data1"), 4)
    assert rank_methods(scores(a=60), scores(a=60)) is None
    assert rank_methods({"a": {}, "b": {}}, {"a": {}, "b": {}}) is None


def test_a_method_without_training_has_one_score_for_every_seed() -> None:
    untrained = {"zero-shot": {f"data{k}": {EVERY_SEED: 55.0} for k in range(3)}}
    ranking = ranked({**scores(a=60), **untrained}, {**scores(a=40), **untrained})
    assert (ranking.published.methods[0], ranking.tuned.methods[0]) == ("a", "zero-shot")
    only = {name: {"data0": {EVERY_SEED: value}} for name, value in (("x", 1.0), ("y", 2.0))}
    assert ranked(only, only).published.methods == ["y", "x"]


def test_ties_are_ordered_by_the_mean_score() -> None:
    a = {"d1": {1: 60.0}, "d2": {1: 50.0}}
    b = {"d1": {1: 50.0}, "d2": {1: 70.0}}
    order = ranked({"a": a, "b": b}, {"a": a, "b": b}).published
    assert order.ranks == {"b": 1.5, "a": 1.5}
    assert order.methods == ["b", "a"]
    assert ranked({"a": a, "b": b}, {"a": a, "b": b}).tau is None, "all ranks are equal"
