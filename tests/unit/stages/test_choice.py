"""The released settings stay unless others are probably better."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune.stages.choice import KEEP_UNLESS, Calibration, candidate, choose, leads

CALIBRATION = Calibration(slope=0.7, spread=1.2, noise=1.1)
DIFFERENCES = st.lists(st.integers(-1000, 1000).map(lambda n: n / 100), min_size=1, max_size=6)


@given(DIFFERENCES)
def test_an_expected_gain_is_nearer_to_nothing_than_the_lead(differences: list[float]) -> None:
    found = candidate(1, differences, CALIBRATION)
    assert abs(found.expected) <= abs(found.lead)
    assert (found.probability >= 0.5) == (found.lead >= 0)


@given(st.floats(0.01, 10))
def test_more_pairs_of_the_same_lead_are_believed_more(lead: float) -> None:
    once, often = (candidate(1, [lead] * n, CALIBRATION) for n in (1, 5))
    assert often.expected > once.expected
    assert often.probability >= once.probability


@given(st.lists(DIFFERENCES, max_size=5))
def test_what_is_chosen_is_probably_better_and_expected_to_gain_most(blocks: list[list[float]]) -> None:
    candidates = [candidate(number, each, CALIBRATION) for number, each in enumerate(blocks, 1)]
    chosen = choose(candidates)
    if chosen is None:
        assert all(each.probability < KEEP_UNLESS for each in candidates)
    else:
        assert chosen.probability >= KEEP_UNLESS
        assert chosen.expected == max(each.expected for each in candidates)


def test_leads_are_taken_block_by_block() -> None:
    found = leads({0: [70.0, 60.0], 4: [71.0, 58.0]}, released=0)
    assert found == {4: pytest.approx([1.0, -2.0])}
