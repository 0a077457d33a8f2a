"""What other studies have measured of settings, carried over to settings that nobody has tried.

A linear model of how far a trial is ahead of its study's mean: scores of different data sets do not compare,
which settings are ahead there does. So many trials of other data sets tell more of a setting than its own one
noisy figure on one of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune.results.schema import EarlierStudy
from tune.space.spaces import FloatRange, Space

Floats = NDArray[np.float64]
SHRINKAGE = 30.0
"""Of the weights of features that vary by 1: as much as so many trials that lead by nothing."""
TRIED = 4096
"""Draws of the space, the most promising of which is proposed; more would lie in corners nobody has seen."""
DIGITS = 4
"""Of proposed numbers: what differs less is the same, on every machine."""


@dataclass(frozen=True)
class _Uniform:
    """Draws of a space from a generator."""

    rng: np.random.Generator

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        if log:
            return float(np.exp(self.rng.uniform(np.log(low), np.log(high))))
        return float(self.rng.uniform(low, high))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        if log:
            return round(self.suggest_float(name, low, high, log=True))
        return int(self.rng.integers(low, high, endpoint=True))

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return choices[self.rng.integers(len(choices))]


def propose(space: Space, studies: Sequence[EarlierStudy], number: int, seed: int) -> list[dict[str, Any]]:
    """Settings of the space to be tried first, different ones, each the most promising of its own draws.

    Example:
        >>> from tune.results.schema import EarlierTrial
        >>> space = Space.of({"optim.lr": {"type": "float", "low": 1e-4, "high": 0.1, "log": True}})
        >>> rates = (1e-4, 50.0), (1e-3, 55.0), (0.05, 60.0)
        >>> trials = tuple(EarlierTrial({"optim.lr": rate}, score) for rate, score in rates)
        >>> study = EarlierStudy("out/dtd", ("dtd",), "drift", trials)
        >>> propose(space, [study], 1, seed=0)[0]["optim.lr"] > 0.09
        True
    """
    model, rng = Promises.of(space, studies, _in_spreads(studies)), np.random.default_rng(seed)
    found = list[dict[str, Any]]()
    for _ in range(number):
        drawn = [_rounded(space, space.draw(_Uniform(rng))) for _ in range(TRIED)]
        fresh = [each for each in drawn if each not in found]
        if fresh:  # else there are no others
            found.append(fresh[int(model.leads(fresh).argmax())])
    return found


@dataclass(frozen=True)
class Promises:
    """What studies promise of settings: a score ahead of a draw of the space, linear in the settings.

    Trials are compared with those of their own study alone.
    """

    space: Space
    weights: Floats

    @classmethod
    def of(
        cls, space: Space, studies: Sequence[EarlierStudy], leads: Sequence[Floats] | None = None
    ) -> "Promises":
        """`leads`: how far each study's trials are above its mean (default: in points, of one objective)."""
        features = [_features(space, study.settings) for study in studies]
        seen = np.concatenate([each - each.mean(axis=0) for each in features])
        precision = seen.T @ seen + SHRINKAGE * np.eye(seen.shape[1])
        return cls(space, np.linalg.solve(precision, seen.T @ np.concatenate(leads or _ahead(studies))))

    def leads(self, settings: Sequence[Mapping[str, Any]]) -> Floats:
        """What is promised of each."""
        expected: Floats = _features(self.space, settings) @ self.weights
        return expected

    def of_a_draw(self, study: EarlierStudy) -> float:
        """What a draw of the space would have scored in a study."""
        return float(np.mean(np.asarray(study.scores, np.float64) - self.leads(study.settings)))


def _ahead(studies: Sequence[EarlierStudy]) -> list[Floats]:
    """Scores above their study's mean."""
    return [np.asarray(study.scores, np.float64) - np.mean(study.scores) for study in studies]


def _in_spreads(studies: Sequence[EarlierStudy]) -> list[Floats]:
    """Scores above their study's mean, in standard deviations of their objective over all that have it.

    Not of their study: where all settings do alike, scores differ by noise.
    """
    ahead, leads = _ahead(studies), list[Floats]()
    for study, each in zip(studies, ahead, strict=True):
        alike = [other for s, other in zip(studies, ahead, strict=True) if s.objective == study.objective]
        leads.append(each / (np.concatenate(alike).std() or 1.0))
    return leads


def _features(space: Space, settings: Sequence[Mapping[str, Any]]) -> Floats:
    """A row for each."""
    rows = [
        [x for key, entry in space.ranges.items() for x in entry.features(each.get(key))] for each in settings
    ]
    width = sum(len(entry.features(None)) for entry in space.ranges.values())
    return np.array(rows, np.float64).reshape(len(settings), width)


def _rounded(space: Space, settings: Mapping[str, Any]) -> dict[str, Any]:
    """With fractions of `DIGITS` digits, inside their ranges."""
    rounded = dict(settings)
    for key, entry in space.ranges.items():
        if key in settings and isinstance(entry, FloatRange):
            rounded[key] = min(max(float(f"{settings[key]:.{DIGITS}g}"), entry.low), entry.high)
    return rounded
