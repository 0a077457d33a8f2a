"""docs/backbones.md says what the code does."""

from __future__ import annotations

from tests.support.backbones_table import END, PAGE, START, table


def test_the_table_is_of_this_code() -> None:
    written = PAGE.read_text().partition(START)[2].partition(END)[0]
    assert written == table(), "run: python -m tests.support.backbones_table"
