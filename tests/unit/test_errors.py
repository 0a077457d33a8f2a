"""The line that stands for an error in messages, reports and records."""

import pytest

from prometar.errors import MAX_LINE_LENGTH, first_line


@pytest.mark.parametrize(
    ("message", "line"),
    [
        pytest.param("disk full", "disk full", id="one line"),
        pytest.param("\ndisk full\nTraceback ...", "disk full", id="first of several lines"),
        pytest.param("", "OSError", id="no message"),
        pytest.param("x" * MAX_LINE_LENGTH, "x" * MAX_LINE_LENGTH, id="longest line that is kept"),
        pytest.param("disk " * 40, " ".join(["disk"] * 32) + " ...", id="cut after a word"),
        pytest.param("x" * 200, "x" * MAX_LINE_LENGTH + " ...", id="one word that is too long"),
    ],
)
def test_an_error_is_described_by_its_first_line(message: str, line: str) -> None:
    assert first_line(OSError(message)) == line
