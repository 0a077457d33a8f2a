"""Benchmarks refuse the data sets that are kept for the last table, unless it is asked for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from prometar.bundled.suite import SUITE

CLOSED = [name for name, rendered in SUITE.items() if rendered.purpose == "claim"]


def test_closed_data_sets_need_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from common import require_development

    monkeypatch.delitem(sys.modules, "common")
    for name in CLOSED:
        with pytest.raises(SystemExit, match=f"{name} are kept for the last table: pass --claim"):
            require_development(["textures", name], claim=False)
        require_development([name], claim=True)
    require_development([*set(SUITE) - set(CLOSED), "dtd"], claim=False)
