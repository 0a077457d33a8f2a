"""Statistics of the final test: error probability, power and early stopping."""

import numpy as np
import pytest
from scipy.special import stdtrit

from prometar.metrics import t_interval
from tune.stages.statistics import ALPHA_BY_PAIRS, is_decided, min_detectable


def run_test(rng: np.random.Generator, difference: float, spread: float = 1.1) -> tuple[int, bool]:
    """Simulate a final test. Return its number of seed pairs, and True if it shows a difference."""
    differences = rng.normal(difference, spread, max(ALPHA_BY_PAIRS)).tolist()
    for pairs, alpha in ALPHA_BY_PAIRS.items():
        if is_decided(differences[:pairs], alpha, min_relevant=1.0):
            break
    interval = t_interval(differences[:pairs], level=1 - alpha)
    return pairs, interval is not None and interval.excludes_zero


def test_all_analyses_have_an_error_of_five_percent() -> None:
    assert sum(ALPHA_BY_PAIRS.values()) == pytest.approx(0.05)
    rng = np.random.default_rng(0)
    assert np.mean([run_test(rng, 0.0)[1] for _ in range(2000)]) < 0.05


def test_one_point_is_shown_in_most_tests_and_two_points_early() -> None:
    rng = np.random.default_rng(1)
    one = [run_test(rng, 1.0) for _ in range(500)]
    two = [run_test(rng, 2.0) for _ in range(500)]
    assert np.mean([shown for _, shown in one]) > 0.75
    assert np.mean([shown for _, shown in two]) > 0.99
    assert np.mean([pairs for pairs, _ in two]) < np.mean([pairs for pairs, _ in one])


def test_a_test_ends_when_differences_that_matter_are_excluded() -> None:
    differences = [0.1, -0.1, 0.0, 0.1, -0.1]
    assert is_decided(differences, 0.005, min_relevant=1.0)
    assert not is_decided(differences, 0.005, min_relevant=0.1)
    assert not is_decided(differences[:1], 0.005, min_relevant=1.0), "a single pair shows nothing"
    assert min_detectable(differences[:1], 0.005) is None


@pytest.mark.parametrize(("pairs", "alpha"), [(3, 0.05), (5, 0.005), (15, 0.02)])
def test_detectable_differences_are_shown_in_four_of_five_tests(pairs: int, alpha: float) -> None:
    unit = np.random.default_rng(0).normal(size=pairs)
    unit = unit / np.std(unit, ddof=1)
    true = min_detectable(list(unit), alpha)
    assert true is not None
    drawn = true + np.random.default_rng(1).normal(size=(20_000, pairs))
    half = stdtrit(pairs - 1, 1 - alpha / 2) * drawn.std(axis=1, ddof=1) / pairs**0.5
    assert np.mean(drawn.mean(axis=1) > half) == pytest.approx(0.8, abs=0.01)
