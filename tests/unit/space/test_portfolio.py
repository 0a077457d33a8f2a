"""A portfolio is chosen without the data sets that are searched."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tune.space.portfolio import Known, Portfolio, first_trials, shipped
from tune.space.spaces import load_space

SETS = ("one", "two", "three")
GAINS = st.fixed_dictionaries({name: st.integers(-5, 5).map(float) for name in SETS})


def portfolio_of(*gains: dict[str, float]) -> Portfolio:
    return Portfolio("s", "mini", "", tuple(Known({"x": number}, each) for number, each in enumerate(gains)))


def numbers(settings: list[dict[str, Any]]) -> list[int]:
    return [each["x"] for each in settings]


def test_those_that_do_best_together_come_first_and_none_that_loses_on_average() -> None:
    found = portfolio_of(
        {"one": 3.0, "two": 0.0, "three": 0.0},
        {"one": 2.9, "two": 0.1, "three": 0.0},
        {"one": -9.0, "two": 1.0, "three": 1.0},
        {"one": -1.0, "two": -1.0, "three": -1.0},
    )
    assert numbers(found.choose(without=())) == [0, 2, 1]


@given(st.lists(GAINS, max_size=8), st.sampled_from(SETS))
def test_what_is_searched_decides_nothing(gains: list[dict[str, float]], searched: str) -> None:
    otherwise = [{**each, searched: -each[searched]} for each in gains]
    chosen = [numbers(portfolio_of(*each).choose(without=[searched])) for each in (gains, otherwise)]
    assert chosen[0] == chosen[1]


def test_where_every_set_is_searched_there_is_none() -> None:
    assert portfolio_of({"one": 3.0, "two": 1.0, "three": 1.0}).choose(without=SETS) == []


def test_what_comes_with_the_package_lies_in_its_space() -> None:
    found = shipped()
    space = load_space(found.space)
    for each in found.known:
        assert space.checked(each.settings, what="the portfolio") == dict(each.settings)
    assert len(first_trials(space, found.backbone, ["shapes"], 5)) == 5
    assert first_trials(load_space("augmentation"), found.backbone, ["shapes"], 5) == []
    assert first_trials(space, "ViT-B-16", ["shapes"], 5) == []
