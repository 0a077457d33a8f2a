"""Settings that did well on other data sets, as the first trials of a search.

`portfolio.json` holds what the settings of `benchmarks/objectives.py` gained over the released ones on each
development set. Five of them are taken that do best together on the sets that are not searched now, so that
no search starts from what was learned on its own test images.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from statistics import mean
from typing import Any

from prometar.bundled.suite import SUITE
from prometar.config.settings import Config, configure
from tune.space.spaces import Space, load_space

SIZE = 5


@dataclass(frozen=True)
class Known:
    """Settings, and their mean gain in H over the released ones by data set, in points."""

    settings: Mapping[str, Any]
    gains: Mapping[str, float]


@dataclass(frozen=True)
class Portfolio:
    """Known settings of a space, over the released ones of a method on a backbone.

    `epochs`: Of all runs. `seeds`: Each gain is the mean over so many.
    """

    space: str
    method: str
    backbone: str
    epochs: int
    seeds: int
    known: tuple[Known, ...]

    def choose(self, without: Collection[str], size: int = SIZE) -> list[dict[str, Any]]:
        """The settings that together do best on all sets but those `without`, the best first.

        Greedy: each further one is what raises the mean over sets of the best gain most, the released
        settings (a gain of 0) always among them. Where none raises it any more, those with the highest mean
        gain follow, as far as it is above 0.
        """
        sets = sorted({name for each in self.known for name in each.gains} - set(without))
        left = list(self.known) if sets else []
        chosen: list[Known] = []
        best = dict.fromkeys(sets, 0.0)
        while left and len(chosen) < size:
            found = max(left, key=lambda each: (_mean_best(best, each), _mean_gain(sets, each)))
            if _mean_best(best, found) <= mean(best.values()) and _mean_gain(sets, found) <= 0:
                break
            left.remove(found)
            chosen.append(found)
            best = {name: max(gain, found.gains[name]) for name, gain in best.items()}
        return [dict(each.settings) for each in chosen]


def _mean_best(best: Mapping[str, float], each: Known) -> float:
    return mean(max(gain, each.gains[name]) for name, gain in best.items())


def _mean_gain(sets: Sequence[str], each: Known) -> float:
    return mean(each.gains[name] for name in sets)


@cache
def shipped() -> Portfolio:
    """The portfolio that comes with the package."""
    tree = json.loads(files("tune.space").joinpath("portfolio.json").read_text("utf-8"))
    known = tuple(Known(entry["settings"], entry["gains"]) for entry in tree["known"])
    return Portfolio(**{**tree, "known": known})


def first_trials(space: Space, config: Config, datasets: Sequence[str], size: int) -> list[dict[str, Any]]:
    """`size` of the portfolio's settings for a search on these data sets; none where it tells nothing."""
    return shipped().choose(without=datasets, size=size) if applies(space, config, datasets) else []


def known_gains(settings: Mapping[str, Any], datasets: Collection[str]) -> list[float]:
    """What these settings gained on data sets other than these; empty where it is not known.

    It tells something only where the portfolio `applies`.
    """
    known = next((each for each in shipped().known if each.settings == dict(settings)), None)
    return [gain for name, gain in known.gains.items() if name not in datasets] if known else []


def applies(space: Space, config: Config, datasets: Collection[str]) -> bool:
    """Whether gains were measured like this: on sets of the suite, over the same released settings.

    What was learned otherwise is not known to hold here.
    """
    found = shipped()
    measured = configure(found.method, {"backbone.name": found.backbone, "train.epochs": found.epochs})
    return (
        SUITE.keys() >= set(datasets)
        and space.describe() == load_space(found.space).describe()
        and _compared(config) == _compared(measured)
    )


def _compared(config: Config) -> dict[str, Any]:
    """What must be the same: all but the data set and the seed."""
    left_out = {"data.name", "data.root", "train.seed"}
    return {key: value for key, value in config.flat().items() if key not in left_out}
