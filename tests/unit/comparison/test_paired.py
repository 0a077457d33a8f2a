"""Differences of pairs: worked out by hand, and what must hold whatever the figures."""

from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from prometar.comparison.paired import Column, Results, compare
from prometar.comparison.render import notes

Nested = dict[str, dict[str, dict[str, dict[int, float]]]]


def one(results: Results, reference: str = "a") -> Column:
    (column,) = compare(results, reference=reference, columns=["H"]).columns
    return column


def results_of(**figures: dict[str, dict[int, float]]) -> Nested:
    """By method: data set: seed: H."""
    return {m: {d: {"H": seeds} for d, seeds in sets.items()} for m, sets in figures.items()}


def test_over_data_sets_by_hand() -> None:
    found = one(
        results_of(
            a={"dtd": {1: 60.0, 2: 62.0}, "pets": {1: 90.0, 2: 91.0}, "ucf": {1: 70.0, 2: 71.0}},
            b={"dtd": {2: 65.0, 1: 61.0}, "pets": {1: 90.0, 2: 91.0}, "ucf": {1: 69.0, 2: 66.0}},
            c={"dtd": {1: 70.0, 2: 72.0}, "pets": {1: 95.0, 2: 96.0}, "ucf": {1: 71.0, 2: 72.0}},
        )
    )
    b, c = found.differences["b"], found.differences["c"]
    assert b.by_dataset == {"dtd": (1.0, 3.0), "pets": (0.0, 0.0), "ucf": (-1.0, -5.0)}
    assert (b.means, b.mean, b.wins_ties_losses) == ((2.0, 0.0, -3.0), pytest.approx(-1 / 3), (1, 1, 1))
    assert (c.means, c.wins_ties_losses, c.p) == ((10.0, 5.0, 1.0), (3, 0, 0), 0.25)
    assert b.p == 1.0, "ranks 1 and 2 of opposite signs"
    assert found.holm == {"b": 1.0, "c": 0.5}
    interval = c.interval
    expected = ttest_rel([71.0, 95.5, 71.5], [61.0, 90.5, 70.5]).confidence_interval()
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))
    assert found.ranks == {
        "a": pytest.approx((3 + 2.5 + 2) / 3), "b": pytest.approx((2 + 2.5 + 3) / 3), "c": 1.0
    }  # fmt: skip


def test_a_lone_data_set_is_over_seeds() -> None:
    found = one(results_of(a={"dtd": {1: 60.0, 2: 62.0, 3: 61.0}}, b={"dtd": {1: 61.0, 2: 64.0, 3: 64.0}}))
    b, expected = found.differences["b"], ttest_rel([61.0, 64.0, 64.0], [60.0, 62.0, 61.0])
    assert (b.over, b.singles, b.p, found.holm) == ("seeds", (1.0, 2.0, 3.0), None, {})
    assert b.interval is not None
    assert (b.interval.low, b.interval.high) == pytest.approx(tuple(expected.confidence_interval()))
    (alone,) = one(results_of(a={"dtd": {1: 60.0}}, b={"dtd": {1: 61.0}})).differences.values()
    assert (alone.mean, alone.interval) == (1.0, None)


def test_methods_whose_p_cannot_reach_a_twentieth_are_named() -> None:
    gains = {"a": (0,) * 6, "whole": (1,) * 6, "tied": (0, 1, 1, 1, 1, 1), "few": (1, 1, 1)}
    results = {
        method: {
            name: {"H": {1: float(gain)}, "base": {1: float(method != "a")}}
            for name, gain in zip("uvwxyz", own, strict=False)
        }
        for method, own in gains.items()
    }
    found = notes(compare(results, reference="a", columns=["H", "base"]))
    assert [line for line in found if line.startswith("p cannot")] == [
        "p cannot be below 0.0625 with 5 data sets whose difference is not 0: tied (H)",
        "p cannot be below 0.25 with 3 data sets whose difference is not 0: few",
    ]


def test_only_pairs_count() -> None:
    results = results_of(
        a={"dtd": {1: 60.0, 2: 99.0}, "pets": {1: 80.0}, "ucf": {1: 70.0}},
        b={"dtd": {1: 61.0, 3: 0.0}, "pets": {2: 0.0}, "ucf": {1: 72.0}},
    )
    found = compare(results, reference="a", columns=["H"])
    (column,) = found.columns
    assert column.differences["b"].by_dataset == {"dtd": (1.0,), "ucf": (2.0,)}
    assert column.ranked == ("dtd", "ucf")
    assert found.remarks == (
        "not paired, for want of runs of a: dtd seed 3, pets seed 2",
        "not paired, for want of runs of b: dtd seed 2, pets seed 1",
    )


def test_a_method_without_runs_is_said_and_ranks_stay() -> None:
    found = compare(
        results_of(a={"dtd": {1: 60.0}}, b={"dtd": {1: 61.0}}, c={}), reference="a", columns=["H"]
    )
    assert list(found.columns[0].differences) == ["b"]
    assert found.columns[0].ranks == {"a": 2.0, "b": 1.0}
    assert found.remarks == ("not paired, for want of runs of c: dtd seed 1",)


def test_what_learns_nothing_is_paired_with_every_seed_and_counts_once() -> None:
    results = results_of(a={"dtd": {1: 60.0, 2: 62.0}}, zero={"dtd": {-1: 50.0}}, more={"dtd": {-1: 51.0}})
    found = compare(results, reference="a", columns=["H"])
    assert not found.remarks
    assert found.columns[0].differences["zero"].singles == (-10.0, -12.0)
    assert found.columns[0].ranks == {"a": 1.0, "more": 2.0, "zero": 3.0}
    more = one(results, "zero").differences["more"]
    assert (more.singles, more.interval) == ((1.0,), None), "no spread from one figure, however many seeds"
    other = results_of(zero={"dtd": {-1: 50.0}}, b={"pets": {1: 60.0}})
    assert compare(other, reference="zero", columns=["H"]).remarks == (
        "not paired, for want of runs of zero: pets seed 1",
        "not paired, for want of runs of b: dtd",
    )


percents = st.integers(0, 10_000).map(lambda n: n / 100)
METHODS, DATASETS, SEEDS = ("a", "b", "c"), ("dtd", "pets", "ucf", "cars"), (1, 2)


# A figure each, or none: of the first one or more data sets, so that lone ones come too.
figures = st.lists(st.none() | percents, min_size=6, max_size=24)


def table(figures: list[float | None]) -> Nested:
    """Figures handed out by data set, method and seed; what is left over is not there."""
    results: Nested = {method: {} for method in METHODS}
    places = [(d, m, s) for d in DATASETS for m in METHODS for s in SEEDS]
    for (dataset, method, seed), value in zip(places, figures, strict=False):
        if value is not None:
            results[method].setdefault(dataset, {"H": {}})["H"][seed] = value
    return results


tables = figures.map(table)


@given(tables)
def test_a_method_against_itself_differs_in_nothing(results: Nested) -> None:
    found = one({"a": results["a"], "again": results["a"]})
    if not results["a"]:
        assert not found.differences
        return
    again = found.differences["again"]
    assert set(again.singles) == {0.0}
    assert again.wins_ties_losses == (0, len(results["a"]), 0)
    assert again.p in (1.0, None)
    assert set(found.ranks.values()) == {1.5}


@given(tables)
def test_the_other_way_round_signs_are_swapped(results: Nested) -> None:
    there, back = one(results, "a").differences, one(results, "b").differences
    assert ("b" in there) == ("a" in back)
    if "b" not in there:
        return
    b, a = there["b"], back["a"]
    assert b.by_dataset == {d: tuple(-x for x in singles) for d, singles in a.by_dataset.items()}
    assert (b.p, b.wins_ties_losses) == (a.p, a.wins_ties_losses[::-1])
    assert (b.interval is None) == (a.interval is None)
    if b.interval and a.interval:
        assert (b.interval.low, b.interval.high) == pytest.approx((-a.interval.high, -a.interval.low))
    assert one(results, "a").ranks == one(results, "b").ranks
    assert one(results, "a").ranked == one(results, "b").ranked


@given(tables, st.lists(percents, min_size=8, max_size=8))
def test_what_a_data_set_and_seed_give_to_all_methods_cancels(results: Nested, shifts: list[float]) -> None:
    by_pair = dict(zip([(d, s) for d in DATASETS for s in SEEDS], shifts, strict=True))
    harder = {
        m: {d: {"H": {s: v + by_pair[d, s] for s, v in c["H"].items()}} for d, c in sets.items()}
        for m, sets in results.items()
    }
    before, after = one(results), one(harder)
    assert before.differences.keys() == after.differences.keys()
    for method, difference in before.differences.items():
        other = after.differences[method]
        assert other.means == pytest.approx(difference.means, abs=1e-9)
        assert (other.p, other.wins_ties_losses) == (difference.p, difference.wins_ties_losses)
    assert after.ranks == before.ranks


@given(tables)
def test_ranks_share_out_all_places(results: Nested) -> None:
    found = one(results)
    if found.ranked:
        assert mean(found.ranks.values()) == pytest.approx((1 + len(found.ranks)) / 2)
