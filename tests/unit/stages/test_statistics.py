"""Statistics of the final test: error probability, power and early stopping."""

from typing import NamedTuple

import numpy as np
import pytest
from scipy.special import stdtrit

from prometar.metrics import t_interval
from tune.stages.statistics import ALPHA_BY_PAIRS, is_decided, min_detectable


class Outcome(NamedTuple):
    """Outcome of a simulated final test."""

    num_pairs: int
    shows_difference: bool


def simulate(rng: np.random.Generator, difference: float, spread: float = 1.1) -> Outcome:
    """Simulate a final test.

    Args:
        rng: Random generator of the differences of the seed pairs.
        difference: True difference in points.
        spread: Standard deviation of the differences in points.
    """
    differences = rng.normal(difference, spread, max(ALPHA_BY_PAIRS)).tolist()
    for num_pairs, alpha in ALPHA_BY_PAIRS.items():
        if is_decided(differences[:num_pairs], alpha, min_relevant=1.0):
            break
    interval = t_interval(differences[:num_pairs], level=1 - alpha)
    assert interval is not None
    return Outcome(num_pairs, interval.excludes_zero)


def test_the_error_probabilities_of_all_analyses_add_up_to_five_percent() -> None:
    assert sum(ALPHA_BY_PAIRS.values()) == pytest.approx(0.05)


def test_without_a_true_difference_less_than_five_percent_of_tests_show_one() -> None:
    rng = np.random.default_rng(0)
    outcomes = [simulate(rng, 0.0) for _ in range(2000)]
    assert np.mean([each.shows_difference for each in outcomes]) < 0.05


def test_one_point_is_shown_in_most_tests_and_two_points_early() -> None:
    rng = np.random.default_rng(1)
    one_point = [simulate(rng, 1.0) for _ in range(500)]
    two_points = [simulate(rng, 2.0) for _ in range(500)]

    assert np.mean([each.shows_difference for each in one_point]) > 0.75
    assert np.mean([each.shows_difference for each in two_points]) > 0.99
    pairs_for_one = np.mean([each.num_pairs for each in one_point])
    pairs_for_two = np.mean([each.num_pairs for each in two_points])
    assert pairs_for_two < pairs_for_one


def test_a_test_ends_when_relevant_differences_are_excluded() -> None:
    differences = [0.1, -0.1, 0.0, 0.1, -0.1]
    assert is_decided(differences, 0.005, min_relevant=1.0)
    assert not is_decided(differences, 0.005, min_relevant=0.1)


def test_a_single_pair_shows_nothing() -> None:
    assert not is_decided([0.1], 0.005, min_relevant=1.0)
    assert min_detectable([0.1], 0.005) is None


@pytest.mark.parametrize(("pairs", "alpha"), [(3, 0.05), (5, 0.005), (15, 0.02)])
def test_detectable_differences_are_shown_in_four_of_five_tests(pairs: int, alpha: float) -> None:
    # Differences with a standard deviation of exactly 1.
    differences = np.random.default_rng(0).normal(size=pairs)
    differences = differences / np.std(differences, ddof=1)
    detectable = min_detectable(list(differences), alpha)
    assert detectable is not None

    # Tests whose true difference is the detectable one. A row contains the differences of a test.
    simulated = detectable + np.random.default_rng(1).normal(size=(20_000, pairs))
    critical_value = stdtrit(pairs - 1, 1 - alpha / 2)
    half_widths = critical_value * simulated.std(axis=1, ddof=1) / pairs**0.5
    shows_difference = simulated.mean(axis=1) > half_widths
    assert np.mean(shows_difference) == pytest.approx(0.8, abs=0.01)
