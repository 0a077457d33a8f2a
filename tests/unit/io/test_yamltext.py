"""YAML of strangers: plain data of a bounded size, or one line."""

from datetime import date
from typing import Any

import pytest

from prometar.errors import UserError
from prometar.io.yamltext import dump_yaml, parse_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "aliases expand to more than 500,000 values"),
        ("&a [*a]", "an alias refers to a node that contains it"),
        ("&a {b: {c: *a}}", "an alias refers to a node that contains it"),
        ("x: " + "9" * 6000, "a number has more than 300 characters"),
        ("x: 0x" + "f" * 6000, "a number has more than 300 characters"),
        ("x: 1." + "9" * 6000, "a number has more than 300 characters"),
        ("!!bool x", "is not valid YAML"),
        ("!!int ''", "is not valid YAML"),
        ("!!timestamp x", "is not valid YAML"),
        ("!!float x", "is not valid YAML"),
        ("!!set [1]", "is not valid YAML"),
        ("{a: 1}: 2", "is not valid YAML"),
        ("a: 1\n--- \nb: 2", "is not valid YAML"),
        ("[" * 100_000, "is nested too deep"),
        ("\x00", "is not valid YAML"),
        ("train: {epochs: 1}\ntrain: {seed: 3}", "'train' is given twice"),
        ("a: {b: 1, c: 2, b: 1}", "'b' is given twice"),
    ],
)
def test_hostile_text_is_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_yaml(text, where="file.yaml")
    assert str(caught.value).startswith("file.yaml is not valid YAML")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


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
def test_what_people_write_is_read(text: str, value: Any) -> None:
    assert parse_yaml(text, where="x") == value
    assert parse_yaml(dump_yaml(value), where="x") == value
