"""Spaces as data."""

from typing import Any

import pytest

from prometar.config.settings import Config
from prometar.errors import UserError
from tune.space.spaces import Space, known_spaces, load_space, parse_space


@pytest.mark.parametrize("name", known_spaces())
def test_every_space_holds_the_released_settings(name: str) -> None:
    """All of them that have an effect beside each other."""
    space = load_space(name)
    values = space.values_of(Config())
    assert values.keys() == {key for key, entry in space.ranges.items() if entry.active(values)}


def test_full_is_the_two_others_together() -> None:
    full, parts = load_space("full").ranges, (load_space(n).ranges for n in ("regularizer", "augmentation"))
    assert full == {key: entry for part in parts for key, entry in part.items()}


def test_lengths_is_recipe_and_three_lengths() -> None:
    lengths, recipe = (load_space(name).ranges for name in ("lengths", "recipe"))
    assert {key: entry for key, entry in lengths.items() if key in recipe} == recipe
    assert lengths.keys() - recipe.keys() == {"train.epochs", "prompts.text_length", "prompts.vision_length"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML"),
        ("[]", "expected a mapping"),
        ("optim.lr: {type: float, low: 1, high: 0}", "optim.lr: low 1.0 must be below high 0.0"),
        ("optim.lr: {type: float, low: 0, high: 1, log: true}", "above 0 with log"),
        ("optim.lr: {type: float, low: 0, high: 1, step: 2}", "optim.lr: step: Extra inputs"),
        ("optim.lr: {type: float, low: false, high: 1}", "optim.lr: low: false is no number"),
        ("prompts.text_length: {type: int, low: 1, high: true}", "text_length: high: true is no number"),
        (
            "optim.lr: {type: float, low: 0, high: 1, log: 1}",
            "optim.lr: log: Input should be a valid boolean",
        ),
        ("optim.lr: {type: real}", "optim.lr: Input tag 'real'"),
    ],
)
def test_a_wrong_space_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        parse_space("mine", text)


@pytest.mark.parametrize("ranges", [None, "x", 5, []])
def test_what_is_no_mapping_is_no_space(ranges: Any) -> None:
    with pytest.raises(UserError, match="space own: expected a mapping of settings to ranges"):
        Space.of(ranges)


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


NESTED = """
regularizer:
  kind: {type: choice, choices: [l1, none]}
  text_weight: {type: float, low: 1.0, high: 100.0, when: {regularizer.kind: l1}}
inner.order: {type: choice, choices: [first, second], when: {regularizer.kind: [l1], modulator.kind: gate}}
"""


def test_settings_nest_and_have_conditions() -> None:
    text = "modulator.kind: {type: choice, choices: [gate, add]}" + NESTED
    space = parse_space("mine", text)
    assert list(space.ranges) == [
        "modulator.kind", "regularizer.kind", "regularizer.text_weight", "inner.order"
    ]  # fmt: skip
    given = {"modulator.kind": "gate", "regularizer.text_weight": 5.0, "inner.order": "first"}
    assert space.checked({**given, "regularizer.kind": "none"}, what="x") == {
        "modulator.kind": "gate", "regularizer.kind": "none"
    }  # fmt: skip
    both = {**given, "regularizer.kind": "l1"}
    assert space.checked(both, what="x") == both
    assert set(space.checked({**both, "modulator.kind": "add"}, what="x")) == {*both} - {"inner.order"}
    open_ = {"regularizer.text_weight": 5.0}
    assert space.checked(open_, what="x") == open_, "it is kept for the case that its condition comes to hold"
    assert (
        space.describe()["inner.order"]
        == "first | second where regularizer.kind = l1 and modulator.kind = gate"
    )
    assert space.values_of(Config()).keys() == space.ranges.keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {choices: [x]}", "space mine, a: its `type` is missing: float, int or choice"),
        ("a: {type: choice, choices: x}", r"choices: expected a list, \[a, b\]"),
        ("a: 0.5", "space mine, a: expected a range, such as {type: float, low: 0.5, high: 200}"),
        ("a: {type: choice, choices: [x, x]}", "choices: a choice is there twice"),
    ],
)
def test_an_entry_that_is_no_range_is_one_plain_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_space("mine", text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (NESTED, "its condition 'modulator.kind' must be a setting above it"),
        (
            "a: {type: choice, choices: [x]}\nb: {type: int, low: 1, high: 2, when: {a: y}}",
            "b: a is never y, its range is x",
        ),
        (
            "a: {type: int, low: 1, high: 2}\nb: {type: int, low: 1, high: 2, when: {a: []}}",
            "a is never nothing",
        ),
        ("a.b: {type: int, low: 1, high: 2}\na: {b: {type: int, low: 1, high: 2}}", "a.b is there twice"),
    ],
)
def test_a_condition_that_cannot_hold_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_space("mine", text)
