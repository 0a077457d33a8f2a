"""A report tells how searches like its own have done, and says nothing where they were others."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.report_study import description, trial, write
from tune.reporting.track_record import shipped, track_record
from tune.results.reader import read_records
from tune.space.portfolio import SIZE

CLAIMED: dict[str, Any] = {
    "datasets": ["cells"], "backbone": "mini", "pretrained": None, "objective": "drift", "trials": 24,
    "pruner": "hopeless", "seeds": [7],
}  # fmt: skip


def said(
    folder: Path, space: str = "recipe", known: int = SIZE, other: str = "", begun: int = 24, **changes: Any
) -> str:
    asked = description(**{**CLAIMED, **changes})
    asked["space"]["name"] = space
    trials = [trial(number, datasets=asked["asked"]["datasets"]) for number in range(begun)]
    for each in trials[1 : 1 + known]:
        each["origin"] = "portfolio"
    if other:
        trials[begun - 1]["origin"] = other
    return track_record(read_records(write(folder, asked, trials)))


def test_the_figures_are_those_that_were_measured(tmp_path: Path) -> None:
    found, text = shipped(), said(tmp_path)
    assert f"{found.searches} such searches on {found.sets} rendered data sets" in text
    assert f"without a search, gained {found.alone:+.2f}." in text.replace("\N{MINUS SIGN}", "-")
    assert found.low <= found.mean <= found.high
    assert found.worse + found.kept <= found.searches


@pytest.mark.parametrize(
    "changes",
    [{"objective": "base_val"}, {"trials": 4}, {"space": "full"}, {"backbone": "ViT-B-16"}, {"shots": 1},
     {"known": 0}, {"known": 1},
     {"other": "enqueued"}, {"other": "warm start"}, {"datasets": ["cells", "textures"]}, {"top": 0},
     {"method": "promptsrc"},
     {"begun": 23}, {"seeds": [7, 8]}, {"goals": ["base", "new"]}, {"max_hours": 1.0}, {"top_seeds": [1]},
     {"val_per_class": 2},
     {"bounds": [{"figure": "base", "limit": 40.0, "least": True}]}],
)  # fmt: skip
def test_other_searches_are_not_told_of(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert said(tmp_path, **changes) == ""
