"""A module of a user's own on the path, forgotten after each test."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.own import write_parts


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The path of mine.py, which can be imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a file that is written twice in a second
    path = write_parts(tmp_path, "mine")
    yield path
    sys.modules.pop("mine", None)
