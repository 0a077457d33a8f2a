"""The tests' p-values against scipy's, and against values worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import PermutationMethod, rankdata, wilcoxon

from prometar.comparison.signed_rank import holm, midranks, signed_rank

points = st.floats(-100, 100).map(lambda x: round(x, 6))
few = st.integers(-4, 4).map(float)  # many are tied, some are 0


@given(st.lists(few, max_size=30))
def test_ranks_are_scipys(values: list[float]) -> None:
    assert midranks(values) == (list(rankdata(values)) if values else [])


@settings(deadline=None)
@given(st.lists(points.filter(bool), min_size=2, max_size=20, unique_by=abs))
def test_without_ties_it_is_scipys_exact_test(differences: list[float]) -> None:
    assert signed_rank(differences) == pytest.approx(wilcoxon(differences, method="exact").pvalue, rel=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.lists(few, min_size=2, max_size=9))
def test_with_ties_it_is_scipys_test_over_all_signs(differences: list[float]) -> None:
    kept = np.array([d for d in differences if d])
    if len(kept) < 2:
        assert signed_rank(differences) == 1.0
        return
    every = PermutationMethod(n_resamples=np.inf)
    assert signed_rank(differences) == pytest.approx(wilcoxon(kept, method=every).pvalue, rel=1e-12)


def test_by_hand() -> None:
    # W- is 1 of the 4 sums 0, 1, 2, 3: P(W <= 1) = 2/4.
    assert signed_rank([2.0, -1.0]) == 1.0
    # Ranks 1.5, 1.5, 3 and W- = 1.5: the sums 0, 1.5, 1.5 of eight.
    assert signed_rank([1.0, -1.0, 5.0]) == 2 * 3 / 8
    assert signed_rank([1.0] * 11) == 2 / 2**11
    assert signed_rank([0.0, 0.0]) == signed_rank([]) == 1.0


def test_what_rounding_leaves_is_no_difference() -> None:
    assert signed_rank([0.1 + 0.2 - 0.3, 1.0, 1.0 + 1e-13, -1.0]) == signed_rank([0.0, 1.0, 1.0, -1.0])


@given(st.lists(few, min_size=1, max_size=15), st.randoms())
def test_signs_and_order_do_not_matter(differences: list[float], random: object) -> None:
    shuffled = list(differences)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert signed_rank([-d for d in shuffled]) == signed_rank(differences)
    assert 0 < signed_rank(differences) <= 1


def test_holm_by_hand() -> None:
    # Sorted .005 .01 .03 .04 times 4 3 2 1: .02 .03 .06 .04, and none below its predecessor.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_between_one_test_and_bonferroni(p_values: list[float]) -> None:
    for p, corrected in zip(p_values, holm(p_values), strict=True):
        assert p <= corrected <= min(1.0, len(p_values) * p)
