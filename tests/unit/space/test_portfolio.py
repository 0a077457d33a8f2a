"""A portfolio is chosen without the data sets that are searched."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prometar.config.settings import configure
from tune.space.portfolio import Known, Portfolio, applies, first_trials, known_gains, shipped
from tune.space.spaces import load_space

SETS = ("one", "two", "three")
GAINS = st.fixed_dictionaries({name: st.integers(-5, 5).map(float) for name in SETS})


def portfolio_of(*gains: dict[str, float]) -> Portfolio:
    return Portfolio(
        "s", "prometar", "mini", 5, 3, tuple(Known({"x": number}, each) for number, each in enumerate(gains))
    )


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
    config = configure("prometar", {"backbone.name": "mini", "train.epochs": 5})
    first = first_trials(space, config, ["cells"], 5)
    assert len(first) == 5
    assert all(len(known_gains(each, ["cells"])) == 3 for each in first)
    assert known_gains({**first[0], "optim.lr": 0.001}, ["cells"]) == []


@pytest.mark.parametrize(
    ("space", "method", "changes", "dataset"),
    [
        ("augmentation", "prometar", {}, "cells"),
        ("recipe", "promptsrc", {}, "cells"),
        ("recipe", "prometar", {"backbone.name": "ViT-B-16", "backbone.pretrained": "openai"}, "cells"),
        ("recipe", "prometar", {"optim.lr": 0.02}, "cells"),
        ("recipe", "prometar", {"data.shots": 4}, "cells"),
        ("recipe", "prometar", {"train.epochs": 10}, "cells"),
        ("recipe", "prometar", {}, "dtd"),
    ],
)
def test_what_was_measured_otherwise_tells_nothing(
    space: str, method: str, changes: dict[str, Any], dataset: str
) -> None:
    config = configure(method, {"backbone.name": "mini", "train.epochs": 5, **changes})
    searched = load_space(space)
    assert first_trials(searched, config, [dataset], 5) == []
    assert not applies(searched, config, [dataset])
