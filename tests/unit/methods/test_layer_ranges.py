"""Layer ranges: errors name the rule that a range breaks."""

import pytest

from prometar.methods.layers import parse_layers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("all", "must be numbers and ranges"),
        ("3-", "must be numbers and ranges"),
        ("0-3", "are numbered from 1"),
        ("5-4", "a range must not be empty"),
        ("1-1001", "layers must be at most 1000, got '1-1001'"),
    ],
)
def test_the_error_of_a_range_names_the_broken_rule(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_layers(text)
