"""What draws a trial's settings: TPE over a space that does not change while a study runs."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial

from tune.spaces import Space

STARTUP_TRIALS = 6  # random draws before TPE's model is used


class SpaceTPE(optuna.samplers.TPESampler):
    """Multivariate TPE that knows its space; Optuna's own looks through every trial for what they share.

    Args:
        space: What each trial draws.
        seed: Of all draws.
    """

    def __init__(self, space: Space, seed: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            super().__init__(
                seed=seed, multivariate=True, constant_liar=True, n_startup_trials=STARTUP_TRIALS
            )
        self._distributions = distributions(space)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._distributions


def sampler_of(space: Space, seed: int, number: int) -> SpaceTPE:
    """The sampler of one draw, a function of the study's seed and the trial's number: it has no state."""
    state = np.random.SeedSequence([seed, number]).generate_state(1)[0]
    return SpaceTPE(space, int(state) or 1)  # 0 would mean "no seed"


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Optuna's distributions of the settings that have more than one value, by name."""
    drawn = space.draw(_Distributions())
    return {name: drawn[name] for name in sorted(drawn) if not drawn[name].single()}


class _Distributions:
    """Draws a setting's distribution instead of a value."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> Any:
        return FloatDistribution(low, high, log=log)

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> Any:
        return IntDistribution(low, high, log=log)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return CategoricalDistribution(choices)
