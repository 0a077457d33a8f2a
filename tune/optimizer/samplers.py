"""What draws a trial's settings. A draw is a function of (seed, number) and of what the study remembers.

No sampler here keeps a state of its own: a restarted study draws what an undisturbed one would have drawn.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, PartialFixedSampler, RandomSampler
from optuna.trial import FrozenTrial

from prometar.errors import UserError
from prometar.io.custom import component
from tune.optimizer.optuna_private import RememberingTPE
from tune.space.point_sets import Point, quasirandom_point
from tune.space.spaces import Choice, IntRange, Numbers, Range, Space

STARTUP_TRIALS = 6  # random draws before a model is used
Distributions = dict[str, BaseDistribution]


class SpaceTPE(RememberingTPE):
    """Multivariate TPE that knows its space; Optuna's own looks through every trial for what they share.

    Settings with conditions are drawn in groups, as Optuna finds them. In a study of thousands the model is
    made of the latest and the best alone, so that a draw takes no longer the more there are; Optuna's weights
    of old trials fall towards 0 in any case.

    Args:
        space: What each trial draws.
        seed: Of all draws.
    """

    def __init__(self, space: Space, seed: int) -> None:
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            super().__init__(
                seed=seed,
                multivariate=True,
                group=space.conditional,
                constant_liar=True,
                n_startup_trials=STARTUP_TRIALS,
            )
        self._distributions = None if space.conditional else distributions(space)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> Distributions:
        if self._distributions is None:
            return super().infer_relative_search_space(study, trial)
        return self._distributions


class _SpaceGP(GPSampler):
    """A Gaussian process over the settings that every trial has; those with conditions come at random."""

    def __init__(self, space: Space, seed: int) -> None:
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            super().__init__(seed=seed, n_startup_trials=STARTUP_TRIALS, warn_independent_sampling=False)
        self._distributions = distributions(space)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> Distributions:
        return self._distributions


class _SpaceCmaEs(CmaEsSampler):
    """CMA-ES over the numbers that every trial has; the rest is drawn at random.

    Optuna keeps its state in the study's storage as a pickle: open no storage that you do not trust with it.
    """

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(
            n_startup_trials=1,
            independent_sampler=RandomSampler(seed),
            warn_independent_sampling=False,
            seed=seed,
        )
        self._distributions = {
            name: each
            for name, each in distributions(space).items()
            if not isinstance(each, CategoricalDistribution)
        }

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> Distributions:
        return self._distributions


def point_sampler(point: Point, seed: int) -> BaseSampler:
    """Takes each setting from a point that is already there; what the point lacks is drawn at random."""
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        return PartialFixedSampler(dict(point), RandomSampler(seed))


class _OwnSampler(PartialFixedSampler):
    """A sampler of the user's own. Optuna trains what one draws outside the space, and keeps it at once."""

    def __init__(self, name: str, sampler: BaseSampler, space: Space) -> None:
        if not isinstance(sampler, BaseSampler):
            raise UserError(f"{name} must make an Optuna sampler of a Draw, found {type(sampler).__name__}")
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            super().__init__({}, sampler)
        self._name, self._space = name, space

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        value = super().sample_independent(study, trial, param_name, param_distribution)
        entry = self._space.ranges[param_name]
        if isinstance(entry, Numbers) and not entry.low <= value <= entry.high:
            raise UserError(f"{self._name} draws {value} of {param_name}, whose range is {entry.values()}")
        return value


@dataclass(frozen=True)
class Draw:
    """Of which trial: the space, the study's seed, and the trial's number."""

    space: Space
    seed: int
    number: int

    @property
    def own_seed(self) -> int:
        """A seed of this draw alone."""
        state = np.random.SeedSequence([self.seed, self.number]).generate_state(1)[0]
        return int(state) or 1  # 0 would mean "no seed"


MakeSampler = Callable[[Draw], BaseSampler]


@dataclass(frozen=True)
class Sampler:
    """What draws settings.

    Args:
        make: Optuna's sampler of a draw.
        enumerates: Whether it takes the grid's points one after the other.
        plain: Whether it knows one goal alone, and no bounds.
    """

    make: MakeSampler
    enumerates: bool = False
    plain: bool = False


SAMPLERS: dict[str, Sampler] = {
    "tpe": Sampler(lambda draw: SpaceTPE(draw.space, draw.own_seed)),
    "random": Sampler(lambda draw: RandomSampler(draw.own_seed)),
    "gp": Sampler(lambda draw: _SpaceGP(draw.space, draw.own_seed)),
    "cmaes": Sampler(lambda draw: _SpaceCmaEs(draw.space, draw.own_seed), plain=True),
    # Its sampler draws what a given start leaves open.
    "grid": Sampler(lambda draw: RandomSampler(draw.own_seed), enumerates=True),
    "quasirandom": Sampler(
        lambda draw: point_sampler(quasirandom_point(draw.space, draw.seed, draw.number), draw.own_seed)
    ),
}


def sampler_of(name: str) -> Sampler:
    """A sampler by name, or the user's own, `package.module:Name`: a `Sampler`, or a function of a `Draw`.

    Raises:
        UserError: unknown, or a part that is none.
    """
    if name in SAMPLERS:
        return SAMPLERS[name]
    found = component("sampler", name, SAMPLERS)
    sampler = found if isinstance(found, Sampler) else Sampler(found)
    return replace(sampler, make=lambda draw: _OwnSampler(name, sampler.make(draw), draw.space))


def distributions(space: Space) -> Distributions:
    """Optuna's distributions of the settings that every trial has and that have more than one value."""
    found = {key: _distribution(entry) for key, entry in sorted(space.ranges.items()) if not entry.when}
    return {key: each for key, each in found.items() if not each.single()}


def _distribution(entry: Range) -> BaseDistribution:
    if isinstance(entry, Choice):
        return CategoricalDistribution(entry.choices)
    if isinstance(entry, IntRange):
        return IntDistribution(entry.low, entry.high, log=entry.log)
    return FloatDistribution(entry.low, entry.high, log=entry.log)
