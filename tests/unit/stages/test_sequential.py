"""A comparison that looks several times is wrong no more often than one that looks once."""

import numpy as np
import pytest
from scipy.special import stdtrit
from tune.stages.sequential import LOOKS, detectable, verdict


def study(rng: np.random.Generator, gain: float, spread: float = 1.1) -> tuple[int, bool, bool]:
    """How many pairs it takes, and what it shows."""
    differences = rng.normal(gain, spread, LOOKS[-1].pairs).tolist()
    for look in LOOKS:
        found = verdict(differences[: look.pairs], look.alpha, matters=1.0)
        assert found is not None
        if found.decided:
            break
    return look.pairs, found.shown, found.excluded


def test_the_error_of_all_looks_is_five_per_cent() -> None:
    assert sum(look.alpha for look in LOOKS) == pytest.approx(0.05)


def test_what_is_not_there_is_seldom_shown() -> None:
    rng = np.random.default_rng(0)
    shown = [study(rng, 0.0)[1] for _ in range(2000)]
    assert np.mean(shown) < 0.05


def test_one_point_is_shown_in_most_studies_and_two_points_soon() -> None:
    rng = np.random.default_rng(1)
    one = [study(rng, 1.0) for _ in range(500)]
    two = [study(rng, 2.0) for _ in range(500)]
    assert np.mean([shown for _, shown, _ in one]) > 0.75
    assert np.mean([shown for _, shown, _ in two]) > 0.99
    assert np.mean([pairs for pairs, *_ in two]) < np.mean([pairs for pairs, *_ in one])


def test_no_difference_ends_when_what_matters_is_excluded() -> None:
    found = verdict([0.1, -0.1, 0.0, 0.1, -0.1], 0.005, matters=1.0)
    assert found is not None
    assert found.decided
    assert found.excluded
    assert not found.shown
    assert found.detectable < 0.5


def test_a_single_pair_shows_nothing() -> None:
    assert verdict([3.0], 0.05, matters=1.0) is None


@pytest.mark.parametrize(("pairs", "alpha"), [(3, 0.05), (5, 0.005), (15, 0.02)])
def test_what_is_called_detectable_is_shown_in_four_of_five_tests(pairs: int, alpha: float) -> None:
    unit = np.random.default_rng(0).normal(size=pairs)
    unit = unit / np.std(unit, ddof=1)
    true = detectable(list(unit), alpha)
    drawn = true + np.random.default_rng(1).normal(size=(20_000, pairs))
    half = stdtrit(pairs - 1, 1 - alpha / 2) * drawn.std(axis=1, ddof=1) / pairs**0.5
    assert np.mean(drawn.mean(axis=1) > half) == pytest.approx(0.8, abs=0.01)
