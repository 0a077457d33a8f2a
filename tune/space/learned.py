"""What other studies have measured of settings, carried over to settings that nobody has tried.

A linear model of how far a trial is ahead of its study's mean: scores of different data sets do not compare,
which settings are ahead there does. So many trials of other data sets tell more of a setting than its own one
noisy figure on one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune.space.spaces import FloatRange, Space

Floats = NDArray[np.float64]
SHRINKAGE = 30.0
"""Of the weights of features that vary by 1: as much as so many trials that lead by nothing."""
TRIED = 4096
"""Draws of the space, the most promising of which is proposed; more would lie in corners nobody has seen."""
DIGITS = 4
"""Of proposed numbers: what differs less is the same, on every machine."""


@dataclass(frozen=True)
class Scored:
    """A study's trials: their settings and scores, higher is better; `objective`: what the scores are of."""

    settings: Sequence[Mapping[str, Any]]
    scores: Sequence[float]
    objective: str


def _leads(studies: Sequence[Scored]) -> Floats:
    """Scores above their study's mean, in standard deviations of their objective.

    Not of their study: where all settings do alike, scores differ by noise.
    """
    ahead = [np.asarray(study.scores, np.float64) - np.mean(study.scores) for study in studies]
    leads = []
    for study, each in zip(studies, ahead, strict=True):
        alike = [other for s, other in zip(studies, ahead, strict=True) if s.objective == study.objective]
        leads.append(each / (np.concatenate(alike).std() or 1.0))
    return np.concatenate(leads)


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


def propose(space: Space, studies: Sequence[Scored], number: int, seed: int) -> list[dict[str, Any]]:
    """Settings of the space to be tried first, different ones, each the most promising of its own draws.

    Example:
        >>> space = Space.of({"optim.lr": {"type": "float", "low": 1e-4, "high": 0.1, "log": True}})
        >>> rates = [{"optim.lr": 1e-4}, {"optim.lr": 1e-3}, {"optim.lr": 0.05}]
        >>> study = Scored(rates, [50.0, 55.0, 60.0], "drift")
        >>> propose(space, [study], 1, seed=0)[0]["optim.lr"] > 0.09
        True
    """
    model, rng = _Model.of(space, studies), np.random.default_rng(seed)
    found = list[dict[str, Any]]()
    for _ in range(number):
        drawn = [_rounded(space, space.draw(_Uniform(rng))) for _ in range(TRIED)]
        fresh = [each for each in drawn if each not in found]
        if fresh:  # else there are no others
            found.append(fresh[int(model.leads(_features(space, fresh)).argmax())])
    return found


def promised(space: Space, studies: Sequence[Scored], settings: Sequence[Mapping[str, Any]]) -> Floats:
    """The leads that the model expects of these settings, in standard deviations of their objective."""
    return _Model.of(space, studies).leads(_features(space, settings))


@dataclass(frozen=True)
class _Model:
    """Weights of features with mean `centre` and standard deviation `scale`."""

    centre: Floats
    scale: Floats
    weights: Floats

    @classmethod
    def of(cls, space: Space, studies: Sequence[Scored]) -> _Model:
        features = _features(space, [each for study in studies for each in study.settings])
        centre, scale = features.mean(axis=0), features.std(axis=0)
        scale[scale < 1e-9] = np.inf  # what has been the same everywhere tells nothing
        seen = (features - centre) / scale
        precision = seen.T @ seen + SHRINKAGE * np.eye(len(centre))
        return cls(centre, scale, np.linalg.solve(precision, seen.T @ _leads(studies)))

    def leads(self, features: Floats) -> Floats:
        expected: Floats = (features - self.centre) / self.scale @ self.weights
        return expected


def _features(space: Space, settings: Sequence[Mapping[str, Any]]) -> Floats:
    """A row for each."""
    return np.array(
        [
            [x for key, entry in space.ranges.items() for x in entry.features(each.get(key))]
            for each in settings
        ]
    )


def _rounded(space: Space, settings: Mapping[str, Any]) -> dict[str, Any]:
    """With fractions of `DIGITS` digits, inside their ranges."""
    rounded = dict(settings)
    for key, entry in space.ranges.items():
        if key in settings and isinstance(entry, FloatRange):
            rounded[key] = min(max(float(f"{settings[key]:.{DIGITS}g}"), entry.low), entry.high)
    return rounded
