"""Paired differences: values worked out by hand, and properties that hold for any figures."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from prometar.comparison.paired import EVERY_SEED, Difference, Results, compare, holm

Nested = dict[str, dict[str, dict[str, dict[int, float]]]]


def one(results: Results, reference: str = "a") -> dict[str, Difference]:
    found, _ = compare(results, reference=reference, metrics=["H"])
    return {difference.method: difference for difference in found}


def results_of(**figures: dict[str, dict[int, float]]) -> Nested:
    """By method: dataset: seed: H."""
    return {m: {d: {"H": seeds} for d, seeds in sets.items()} for m, sets in figures.items()}


def test_several_datasets_by_hand() -> None:
    found = one(
        results_of(
            a={"dtd": {1: 60.0, 2: 62.0}, "pets": {1: 90.0, 2: 91.0}, "ucf": {1: 70.0, 2: 71.0}},
            b={"dtd": {2: 65.0, 1: 61.0}, "pets": {1: 90.0, 2: 91.0}, "ucf": {1: 69.0, 2: 66.0}},
            c={"dtd": {1: 70.0, 2: 72.0}, "pets": {1: 95.0, 2: 96.0}, "ucf": {1: 71.0, 2: 72.0}},
        )
    )
    b = found["b"]
    c = found["c"]
    assert b.by_dataset == {"dtd": (1.0, 3.0), "pets": (0.0, 0.0), "ucf": (-1.0, -5.0)}
    assert (b.values, b.unit) == ((2.0, 0.0, -3.0), "datasets")
    assert (c.values, c.p, c.p_holm) == ((10.0, 5.0, 1.0), 0.25, 0.5)
    assert (b.p, b.p_holm) == (1.0, 1.0), "ranks 1 and 2 of opposite signs"
    expected = ttest_rel([71.0, 95.5, 71.5], [61.0, 90.5, 70.5]).confidence_interval()
    assert c.interval is not None
    assert (c.interval.low, c.interval.high) == pytest.approx((expected.low, expected.high))


def test_a_single_dataset_is_over_seeds() -> None:
    b = one(results_of(a={"dtd": {1: 60.0, 2: 62.0, 3: 61.0}}, b={"dtd": {1: 61.0, 2: 64.0, 3: 64.0}}))["b"]
    expected = ttest_rel([61.0, 64.0, 64.0], [60.0, 62.0, 61.0]).confidence_interval()
    assert (b.unit, b.values, b.p, b.p_holm) == ("seeds", (1.0, 2.0, 3.0), None, None)
    assert b.interval is not None
    assert (b.interval.low, b.interval.high) == pytest.approx((expected.low, expected.high))


def test_the_rest_is_paired_and_what_is_missing_is_noted() -> None:
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


def test_a_method_that_trains_nothing_is_paired_with_every_seed() -> None:
    zero = {EVERY_SEED: 50.0}
    more = {EVERY_SEED: 51.0}
    results = results_of(a={"dtd": {1: 60.0, 2: 62.0}}, zero={"dtd": zero}, more={"dtd": more})
    found, notes = compare(results, reference="a", metrics=["H"])
    assert not notes
    assert found[0].values == (-10.0, -12.0)
    alone = one(results, "zero")["more"]
    assert (alone.values, alone.interval) == ((1.0,), None), "one figure has no spread"


percents = st.integers(0, 10_000).map(lambda n: n / 100)
METHODS = ("a", "b", "c")
DATASETS = ("dtd", "pets", "ucf", "cars")
SEEDS = (1, 2)


def table(figures: list[float | None]) -> Nested:
    """Distribute figures by dataset, method and seed. The remaining ones are missing."""
    results: Nested = {method: {} for method in METHODS}
    places = [(d, m, s) for d in DATASETS for m in METHODS for s in SEEDS]
    for (dataset, method, seed), value in zip(places, figures, strict=False):
        if value is not None:
            results[method].setdefault(dataset, {"H": {}})["H"][seed] = value
    return results


tables = st.lists(st.none() | percents, min_size=6, max_size=24).map(table)


@given(tables, st.lists(percents, min_size=8, max_size=8))
def test_order_and_difficulty_do_not_matter(results: Nested, shifts: list[float]) -> None:
    there = one(results, "a")
    back = one(results, "b")
    assert ("b" in there) == ("a" in back)
    if "b" in there:
        b = there["b"]
        a = back["a"]
        assert b.by_dataset == {d: tuple(-x for x in values) for d, values in a.by_dataset.items()}
        assert b.p == a.p
    by_pair = dict(zip([(d, s) for d in DATASETS for s in SEEDS], shifts, strict=True))
    harder = {
        m: {d: {"H": {s: v + by_pair[d, s] for s, v in c["H"].items()}} for d, c in sets.items()}
        for m, sets in results.items()
    }
    after = one(harder)
    assert there.keys() == after.keys()
    for method, difference in there.items():
        other = after[method]
        assert other.values == pytest.approx(difference.values, abs=1e-9)
        assert other.p == difference.p


def test_holm_by_hand() -> None:
    # Sorted .005 .01 .03 .04 times 4 3 2 1: .02 .03 .06 .04, and none below its predecessor.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, None, 0.7]) == [1.0, None, 1.0]
