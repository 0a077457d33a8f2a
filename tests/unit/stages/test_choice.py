"""The released settings stay unless others are probably better."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune.stages.choice import CALIBRATIONS, KEEP_UNLESS, Calibration, candidate, leads

CALIBRATION = Calibration(offset=-0.5, slope=0.7, spread=1.2, between=2.0, noise=1.1)
DIFFERENCES = st.lists(st.integers(-1000, 1000).map(lambda n: n / 100), min_size=1, max_size=6)


@given(DIFFERENCES)
def test_an_expected_gain_is_nearer_to_nothing_than_the_lead(differences: list[float]) -> None:
    found = candidate(1, differences, CALIBRATION)
    assert abs(found.expected - CALIBRATION.offset) <= abs(found.lead)
    assert (found.probability >= 0.5) == (found.expected >= 0)


@given(st.floats(0.01, 10))
def test_more_pairs_of_the_same_lead_are_believed_more(lead: float) -> None:
    once, often = (candidate(1, [lead] * n, CALIBRATION) for n in (1, 5))
    assert often.expected > once.expected
    if once.expected > 0:
        assert often.probability >= once.probability


def test_a_small_lead_is_no_reason_to_leave_the_released_settings() -> None:
    for calibration in CALIBRATIONS.values():
        assert candidate(1, [0.5, 0.5], calibration).probability < KEEP_UNLESS
        assert candidate(1, [9.0, 9.0], calibration).probability > KEEP_UNLESS


def test_leads_are_taken_block_by_block() -> None:
    found = leads({0: [70.0, 60.0], 4: [71.0, 58.0]}, released=0)
    assert found == {4: pytest.approx([1.0, -2.0])}
