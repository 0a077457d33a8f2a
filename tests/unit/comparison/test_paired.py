"""Paired differences: values computed by hand, and properties that hold for any scores."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from prometar.comparison.paired import EVERY_SEED, Difference, Results, compare, holm

ScoresBySeed = dict[int, float]
MutableResults = dict[str, dict[str, dict[str, ScoresBySeed]]]
"""`Results` that can be changed: scores by method, dataset, metric and seed."""


def compare_h(results: Results, reference: str = "a") -> dict[str, Difference]:
    """Return the differences in H by method."""
    differences, _ = compare(results, reference=reference, metrics=["H"])
    return {difference.method: difference for difference in differences}


def results_of(**h_by_method: dict[str, ScoresBySeed]) -> MutableResults:
    """Return results with the metric H only, given H by method, dataset and seed."""
    results: MutableResults = {}
    for method, by_dataset in h_by_method.items():
        results[method] = {dataset: {"H": by_seed} for dataset, by_seed in by_dataset.items()}
    return results


THREE_DATASETS = results_of(
    a={"dtd": {1: 60.0, 2: 62.0}, "pets": {1: 90.0, 2: 91.0}, "ucf": {1: 70.0, 2: 71.0}},
    b={"dtd": {2: 65.0, 1: 61.0}, "pets": {1: 90.0, 2: 91.0}, "ucf": {1: 69.0, 2: 66.0}},
    c={"dtd": {1: 70.0, 2: 72.0}, "pets": {1: 95.0, 2: 96.0}, "ucf": {1: 71.0, 2: 72.0}},
)


def test_scores_are_paired_by_dataset_and_seed() -> None:
    b = compare_h(THREE_DATASETS)["b"]
    assert b.by_dataset == {"dtd": (1.0, 3.0), "pets": (0.0, 0.0), "ucf": (-1.0, -5.0)}


def test_values_over_several_datasets_are_means_of_seeds() -> None:
    differences = compare_h(THREE_DATASETS)
    assert differences["b"].values == (2.0, 0.0, -3.0)
    assert differences["c"].values == (10.0, 5.0, 1.0)
    assert differences["b"].unit == "datasets"


def test_p_values_over_datasets_are_corrected_for_the_number_of_methods() -> None:
    differences = compare_h(THREE_DATASETS)
    # All three differences of c are positive. The nonzero differences of b, 2 and -3, have opposite signs.
    assert differences["c"].p == 0.25
    assert differences["c"].p_holm == 0.5
    assert differences["b"].p == 1.0
    assert differences["b"].p_holm == 1.0


def test_the_interval_over_datasets_is_that_of_a_paired_t_test() -> None:
    interval = compare_h(THREE_DATASETS)["c"].interval
    means_of_c = [71.0, 95.5, 71.5]
    means_of_a = [61.0, 90.5, 70.5]
    expected = ttest_rel(means_of_c, means_of_a).confidence_interval()
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


def test_differences_on_a_single_dataset_are_summarized_over_seeds() -> None:
    a = {1: 60.0, 2: 62.0, 3: 61.0}
    b = {1: 61.0, 2: 64.0, 3: 64.0}
    difference = compare_h(results_of(a={"dtd": a}, b={"dtd": b}))["b"]
    assert difference.unit == "seeds"
    assert difference.values == (1.0, 2.0, 3.0)
    assert difference.p is None
    assert difference.p_holm is None

    expected = ttest_rel(list(b.values()), list(a.values())).confidence_interval()
    interval = difference.interval
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


def test_runs_without_a_counterpart_are_left_out_and_noted() -> None:
    results = results_of(
        a={"dtd": {1: 60.0, 2: 99.0}, "pets": {1: 80.0}, "ucf": {1: 70.0}},
        b={"dtd": {1: 61.0, 3: 0.0}, "pets": {2: 0.0}, "ucf": {1: 72.0}},
        c={},
    )
    (b,), notes = compare(results, reference="a", metrics=["H"])
    assert b.by_dataset == {"dtd": (1.0,), "ucf": (2.0,)}
    assert notes == [
        "Not paired: a has no run on dtd with seed 3.",
        "Not paired: b has no run on dtd with seed 2.",
        "Not paired: c has no run on dtd.",
        "Not paired: a has no run on pets with seed 2.",
        "Not paired: b has no run on pets with seed 1.",
        "Not paired: c has no run on pets.",
        "Not paired: c has no run on ucf.",
    ]


UNTRAINED = results_of(
    a={"dtd": {1: 60.0, 2: 62.0}},
    zero={"dtd": {EVERY_SEED: 50.0}},
    more={"dtd": {EVERY_SEED: 51.0}},
)


def test_a_method_without_training_is_paired_with_every_seed() -> None:
    differences, notes = compare(UNTRAINED, reference="a", metrics=["H"])
    assert not notes
    assert differences[0].values == (-10.0, -12.0)


def test_two_methods_without_training_have_one_difference_and_no_interval() -> None:
    difference = compare_h(UNTRAINED, "zero")["more"]
    assert difference.values == (1.0,)
    assert difference.interval is None


METHODS = ("a", "b", "c")
DATASETS = ("dtd", "pets", "ucf", "cars")
SEEDS = (1, 2)
PAIRS = tuple(product(DATASETS, SEEDS))
percents = st.integers(0, 10_000).map(lambda hundredths: hundredths / 100)


def results_from(scores: list[float | None]) -> MutableResults:
    """Return results with these scores, which are assigned by dataset, method and seed.

    None is a missing run. If there are fewer scores than runs, the remaining runs are missing, too.
    """
    results: MutableResults = {method: {} for method in METHODS}
    for (dataset, method, seed), score in zip(product(DATASETS, METHODS, SEEDS), scores, strict=False):
        if score is not None:
            results[method].setdefault(dataset, {"H": {}})["H"][seed] = score
    return results


any_results = st.lists(st.none() | percents, min_size=6, max_size=24).map(results_from)


@given(any_results)
def test_exchanging_method_and_reference_changes_only_the_sign(results: MutableResults) -> None:
    of_a = compare_h(results, "a")
    of_b = compare_h(results, "b")
    assert ("b" in of_a) == ("a" in of_b)
    if "b" in of_a:
        negated = {
            dataset: tuple(-value for value in values) for dataset, values in of_b["a"].by_dataset.items()
        }
        assert of_a["b"].by_dataset == negated
        assert of_a["b"].p == of_b["a"].p


@given(any_results, st.lists(percents, min_size=len(PAIRS), max_size=len(PAIRS)))
def test_a_shift_of_all_methods_on_a_dataset_and_seed_has_no_effect(
    results: MutableResults, shifts: list[float]
) -> None:
    shift_of_pair = dict(zip(PAIRS, shifts, strict=True))
    shifted: MutableResults = {}
    for method, by_dataset in results.items():
        shifted[method] = {}
        for dataset, by_metric in by_dataset.items():
            by_seed = {seed: score + shift_of_pair[dataset, seed] for seed, score in by_metric["H"].items()}
            shifted[method][dataset] = {"H": by_seed}

    before = compare_h(results)
    after = compare_h(shifted)
    assert before.keys() == after.keys()
    for method, difference in before.items():
        assert after[method].values == pytest.approx(difference.values, abs=1e-9)
        assert after[method].p == difference.p


def test_holms_correction_equals_values_computed_by_hand() -> None:
    # The sorted p-values 0.005, 0.01, 0.03 and 0.04 times 4, 3, 2 and 1 are 0.02, 0.03, 0.06 and 0.04. The
    # last product is raised to 0.06, because corrected values never decrease.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holms_correction_stays_at_most_1_and_skips_missing_values() -> None:
    assert holm([0.6, None, 0.7]) == [1.0, None, 1.0]
