"""Benchmarks keep the data sets of the last table closed, and what is shipped is what they found."""

import json
import sys
from collections.abc import Iterator
from importlib.resources import files
from math import hypot
from pathlib import Path
from statistics import mean, stdev

import pytest

from prometar.bundled.suite import SUITE
from tune.space.spaces import load_space
from tune.stages.choice import BETWEEN, CALIBRATIONS, EMBEDDED, PROMISES, Belief

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CLOSED = [name for name, rendered in SUITE.items() if rendered.purpose == "claim"]


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Its scripts can be imported meanwhile."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield
    for path in BENCHMARKS.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_closed_data_sets_need_claim() -> None:
    from common import require_development

    for name in CLOSED:
        with pytest.raises(SystemExit, match=f"{name} are kept for the last table: pass --claim"):
            require_development(["textures", name], claim=False)
        require_development([name], claim=True)
    require_development([*set(SUITE) - set(CLOSED), "dtd"], claim=False)


def test_what_is_shipped_is_what_the_recorded_figures_say() -> None:
    """What a lead is worth, what a draw gains, and the portfolio."""
    import objectives
    from choosing import promise
    from scoring import DRIFT, WAYS, Evidence, calibration

    found = Evidence.read(objectives.EVIDENCE)
    worth, draws = calibration(WAYS[DRIFT], found.tables)
    assert worth == CALIBRATIONS["drift"]
    assert promise(found.tables, objectives.drawn(found), load_space(found.space)) == PROMISES["drift"]
    of_sets = [mean(t.gains.mean(axis=1)) for t in found.tables]
    assert round(stdev(of_sets), 1) == BETWEEN
    assert Belief(round(draws.mean, 1), round(hypot(draws.sd, stdev(of_sets) / 2), 1)) == EMBEDDED
    shipped = json.loads(files("tune.space").joinpath("portfolio.json").read_text("utf-8"))
    made = objectives.portfolio(found)
    for known, again in zip(shipped.pop("known"), made.pop("known"), strict=True):
        assert again["gains"] == known["gains"]
        assert again["settings"].keys() == known["settings"].keys()
        for key, value in known["settings"].items():  # another machine has other logarithms
            assert again["settings"][key] == (value if isinstance(value, str) else pytest.approx(value))
    assert made == shipped
