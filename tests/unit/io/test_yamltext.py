"""YAML from users becomes plain data of a limited size, or an error in one line."""

from datetime import date
from itertools import pairwise
from typing import Any

import pytest

from prometar.errors import UserError
from prometar.io.yamltext import dump_yaml, parse_yaml


def alias_bomb() -> str:
    """Return a short text whose aliases expand to a billion values. Each line repeats the previous line."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]\n"]
    for previous, name in pairwise("abcdefghi"):
        aliases = ", ".join([f"*{previous}"] * 10)
        lines.append(f"{name}: &{name} [{aliases}]\n")
    return "".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(alias_bomb(), "aliases expand to more than 500,000 values", id="alias bomb"),
        ("&a [*a]", "an alias refers to a node that contains it"),
        ("&a {b: {c: *a}}", "an alias refers to a node that contains it"),
        pytest.param("x: " + "9" * 6000, "a number has more than 300 characters", id="long integer"),
        pytest.param("x: 0x" + "f" * 6000, "a number has more than 300 characters", id="long hexadecimal"),
        pytest.param("x: 1." + "9" * 6000, "a number has more than 300 characters", id="long fraction"),
        ("!!bool x", "is not valid YAML"),
        ("!!int ''", "is not valid YAML"),
        ("!!timestamp x", "is not valid YAML"),
        ("!!float x", "is not valid YAML"),
        ("!!set [1]", "is not valid YAML"),
        ("{a: 1}: 2", "is not valid YAML"),
        ("a: 1\n--- \nb: 2", "is not valid YAML"),
        pytest.param("[" * 100_000, "is nested too deep", id="deep nesting"),
        ("\x00", "is not valid YAML"),
        ("train: {epochs: 1}\ntrain: {seed: 3}", "'train' is given twice"),
        ("a: {b: 1, c: 2, b: 1}", "'b' is given twice"),
    ],
)
def test_invalid_or_hostile_text_is_reported_in_one_short_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_yaml(text, where="file.yaml")
    error = str(caught.value)
    assert error.startswith("file.yaml is not valid YAML")
    assert len(error.splitlines()) == 1
    assert len(error) < 400


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("['1e3', '12345e678901', 1e3]", ["1e3", "12345e678901", 1000.0]),
        ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
        ("[1, 2.5, yes, null, 2001-02-03]", [1, 2.5, True, None, date(2001, 2, 3)]),
        ("a: {<<: {b: 1}, c: 2}", {"a": {"b": 1, "c": 2}}),
        ("a: {<<: {b: 1}, <<: {c: 1}, b: 2}", {"a": {"b": 2, "c": 1}}),
    ],
)
def test_valid_text_becomes_plain_data_that_can_be_written_and_read_again(text: str, value: Any) -> None:
    assert parse_yaml(text, where="x") == value
    assert parse_yaml(dump_yaml(value), where="x") == value
