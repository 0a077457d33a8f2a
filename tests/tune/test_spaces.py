"""Spaces as data."""

from __future__ import annotations

import pytest

from prometar.config import Config
from prometar.errors import UserError
from tune.spaces import known_spaces, load_space, parse_space


@pytest.mark.parametrize("name", known_spaces())
def test_every_space_holds_the_released_settings(name: str) -> None:
    space = load_space(name)
    assert space.values_of(Config()).keys() == space.ranges.keys()


def test_full_is_the_two_others_together() -> None:
    full, parts = load_space("full").ranges, (load_space(n).ranges for n in ("regularizer", "augmentation"))
    assert full == {key: entry for part in parts for key, entry in part.items()}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML"),
        ("[]", "expected a mapping"),
        ("optim.lr: {type: float, low: 1, high: 0}", "optim.lr: Value error, low 1.0 must be below high 0.0"),
        ("optim.lr: {type: float, low: 0, high: 1, log: true}", "above 0 with log"),
        ("optim.lr: {type: float, low: 0, high: 1, step: 2}", "optim.lr: step: Extra inputs"),
        ("optim.lr: {type: real}", "optim.lr: Input tag 'real'"),
    ],
)
def test_a_wrong_space_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        parse_space("mine", text)


def test_a_reference_outside_is_refused() -> None:
    space = parse_space("mine", "optim.lr: {type: float, low: 0.1, high: 1.0}")
    with pytest.raises(UserError, match=r"optim.lr is 0.0025, its range 0.1 .. 1"):
        space.values_of(Config())


def test_an_unknown_setting_is_refused() -> None:
    space = parse_space("mine", "optim.rate: {type: float, low: 0.1, high: 1.0}")
    with pytest.raises(UserError, match=r"'optim.rate', which is no setting"):
        space.values_of(Config())


def test_unknown_spaces_are_named() -> None:
    with pytest.raises(
        UserError, match="unknown space 'huge': no such file, and known are augmentation, full"
    ):
        load_space("huge")
