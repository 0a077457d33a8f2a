"""Settings that did well on other data sets, as the first trials of a search.

`portfolio.json` holds what the settings of `benchmarks/objectives.py` gained over the released ones on each
development set. Five of them are taken that do best together on the sets that are not searched now: so a
search never starts from what was learned on its own test images.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from statistics import mean
from typing import Any

from tune.space.spaces import Space


@dataclass(frozen=True)
class Known:
    """Settings, and their mean gain in H over the released ones by data set, in points."""

    settings: Mapping[str, Any]
    gains: Mapping[str, float]


@dataclass(frozen=True)
class Portfolio:
    """Known settings of one space. `evidence`: how they were measured, in a sentence."""

    space: str
    evidence: str
    known: tuple[Known, ...]

    def choose(self, without: Collection[str], size: int = 5) -> list[dict[str, Any]]:
        """The settings that together do best on all sets but those `without`, the best first.

        Greedy: each further one is what raises the mean over sets of the best gain most, the released
        settings (a gain of 0) always among them.
        """
        sets = sorted({name for each in self.known for name in each.gains} - set(without))
        chosen: list[Known] = []
        best = dict.fromkeys(sets, 0.0)
        while sets and len(chosen) < size:
            left = [each for each in self.known if each not in chosen]
            value, found = max(
                ((_mean_best(best, each), each) for each in left),
                key=lambda pair: pair[0],
                default=(0.0, None),
            )
            if found is None or value <= mean(best.values()):
                break
            chosen.append(found)
            best = {name: max(gain, found.gains[name]) for name, gain in best.items()}
        return [dict(each.settings) for each in chosen]


def _mean_best(best: Mapping[str, float], each: Known) -> float:
    return mean(max(gain, each.gains[name]) for name, gain in best.items())


def shipped() -> Portfolio:
    """The portfolio that comes with the package."""
    tree = json.loads(files("tune.space").joinpath("portfolio.json").read_text("utf-8"))
    known = tuple(Known(entry["settings"], entry["gains"]) for entry in tree["known"])
    return Portfolio(tree["space"], tree["evidence"], known)


def first_trials(space: Space, datasets: Sequence[str], size: int) -> list[dict[str, Any]]:
    """`size` of the portfolio's settings for a search on these data sets; none for another space."""
    found = shipped()
    return found.choose(without=datasets, size=size) if found.space == space.name else []
