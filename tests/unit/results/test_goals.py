"""Bounds as they are asked for."""

import pytest

from prometar.errors import UserError
from tune.results.goals import Bound, keeps, parse_bounds


def test_a_bound_is_kept_at_its_limit() -> None:
    bounds = parse_bounds(["base=80"], ["seconds=600"])
    assert bounds == (Bound("base", 80.0, least=True), Bound("seconds", 600.0, least=False))
    figures = {"base": 80.0, "seconds": 600.0}
    assert keeps(bounds, figures.get)
    assert not keeps(bounds, {**figures, "base": 79.9}.get)
    assert not keeps(bounds, {**figures, "seconds": 600.1}.get)
    assert not keeps(bounds, {"seconds": 1.0}.get), "what has no figure keeps nothing"


@pytest.mark.parametrize("text", ["base", "base=", "base=much", "base=nan", "base=inf", "fame=3", "=3", ""])
def test_wrong_bounds_are_one_line(text: str) -> None:
    with pytest.raises(
        UserError, match=f"^--at-least '{text}': expected figure=number with one of objective"
    ):
        parse_bounds([text], [])


@pytest.mark.parametrize(
    ("least", "most", "said"),
    [
        (["base=90"], ["base=10"], "nothing can keep both base at least 90 and base at most 10"),
        (["base=800"], [], "--at-least 'base=800': expected percent above 0 and at most 100"),
        ([], ["seconds=-1"], "--at-most 'seconds=-1': expected seconds above 0"),
    ],
)
def test_what_nothing_can_keep_is_refused(least: list[str], most: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_bounds(least, most)


def test_a_bound_is_told_with_all_its_digits() -> None:
    (bound,) = parse_bounds([], ["seconds=1234567.5"])
    assert str(bound) == "seconds at most 1234567.5"


def test_a_figure_is_bounded_once_a_side() -> None:
    assert len(parse_bounds(["base=80"], ["base=90"])) == 2
    with pytest.raises(UserError, match="bounded twice: base at least 80, base at least 81"):
        parse_bounds(["base=80", "base=81"], [])
