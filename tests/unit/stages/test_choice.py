"""The released settings stay unless others are probably better."""

from statistics import mean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tune.stages.choice import (
    CALIBRATIONS,
    EMBEDDED,
    KEEP_UNLESS,
    PROMISES,
    UNKNOWN,
    Belief,
    Calibration,
    belief,
    believed,
    leads,
)

CALIBRATION = Calibration(offset=0.5, slope=0.4, spread=1.2, noise=1.1)
HUNDREDTHS = st.integers(-1000, 1000).map(lambda n: n / 100)
DIFFERENCES = st.lists(HUNDREDTHS, min_size=1, max_size=6)
BEFORE = st.builds(Belief, HUNDREDTHS, st.integers(1, 50).map(lambda n: n / 10))


@given(DIFFERENCES, BEFORE)
def test_what_is_expected_lies_between_what_was_believed_and_what_was_measured(
    differences: list[float], before: Belief
) -> None:
    found = believed(differences, CALIBRATION, before)
    measured, _ = CALIBRATION.measured(mean(differences), len(differences))
    low, high = sorted((before.mean, measured))
    assert low - 1e-9 <= found.mean <= high + 1e-9
    assert (found.probability >= 0.5) == (found.mean >= 0)


@given(HUNDREDTHS, BEFORE)
def test_more_pairs_of_the_same_lead_are_believed_more(lead: float, before: Belief) -> None:
    once, often = (believed([lead] * n, CALIBRATION, before) for n in (1, 5))
    measured, _ = CALIBRATION.measured(lead, 1)
    assert abs(often.mean - measured) <= abs(once.mean - measured) + 1e-9


@given(st.lists(HUNDREDTHS, min_size=1, max_size=5), HUNDREDTHS)
def test_settings_known_to_gain_more_are_believed_to(gains: list[float], more: float) -> None:
    better = [gain + abs(more) for gain in gains]
    assert belief(better, UNKNOWN).mean >= belief(gains, UNKNOWN).mean
    assert belief(better, UNKNOWN).sd == pytest.approx(belief(gains, UNKNOWN).sd)
    assert abs(belief(gains, UNKNOWN).mean) <= abs(sum(gains) / len(gains)), "shrunk towards nothing"


def test_the_posterior_is_that_of_simulated_studies() -> None:
    rng, before, pairs = np.random.default_rng(0), Belief(1.0, 2.0), 2
    gains = rng.normal(before.mean, before.sd, 400_000)
    noise = np.hypot(CALIBRATION.spread, CALIBRATION.noise / np.sqrt(pairs))
    seen = rng.normal(CALIBRATION.offset + CALIBRATION.slope * gains, noise)
    found = believed([2.0, 2.0], CALIBRATION, before)
    alike = gains[np.abs(seen - 2.0) < 0.05]
    assert found.mean == pytest.approx(alike.mean(), abs=0.05)
    assert found.probability == pytest.approx((alike > 0).mean(), abs=0.01)


def test_where_nothing_is_known_a_small_lead_is_no_reason_to_leave_the_released_settings() -> None:
    for calibration in CALIBRATIONS.values():
        assert believed([0.5, 0.5], calibration, UNKNOWN).probability < KEEP_UNLESS
        assert believed([9.0, 9.0], calibration, UNKNOWN).probability > KEEP_UNLESS
        assert believed([-5.0, -5.0], calibration, EMBEDDED).probability < KEEP_UNLESS


def test_leads_are_taken_block_by_block() -> None:
    found = leads({0: [70.0, 60.0], 4: [71.0, 58.0]}, released=0)
    assert found == {4: pytest.approx([1.0, -2.0])}


def test_a_large_promise_does_not_stand_against_leads_that_measure_nothing() -> None:
    """Three seeds at the lead of what gains nothing. A modest promise and a lead that agree are enough."""
    promise, calibration = PROMISES["drift"], CALIBRATIONS["drift"]
    large, modest = promise.belief(4.0, UNKNOWN), promise.belief(1.5, UNKNOWN)
    assert large.probability > KEEP_UNLESS
    assert believed([calibration.offset] * 3, calibration, large).probability < KEEP_UNLESS
    assert believed([1.4] * 3, calibration, modest).probability > KEEP_UNLESS
    assert believed([1.4] * 3, calibration, UNKNOWN).probability < KEEP_UNLESS
