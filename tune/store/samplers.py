"""Samplers of settings. A trial's settings depend on (seed, number) and on the results in the storage.

Samplers have no state of their own, so a resumed study samples what an undisturbed one would have sampled.
"""

import warnings
from collections.abc import Callable

import numpy as np
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from prometar.errors import UserError
from prometar.io.custom import component
from tune.space.space import Space

STARTUP_TRIALS = 6
"""Results that a model needs, at least."""


def seed_of(*numbers: int) -> int:
    """Seed of a trial from the study's seed, the trial's number and the attempt to sample it."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0]) or 1  # 0: no seed


def make_sampler(name: str, space: Space, seed: int, concurrency: int) -> BaseSampler:
    """Make the sampler of one trial.

    A model waits for the results of the first wave: the fastest of them alone would favor short trials.

    Args:
        name: tpe, random, gp, or a custom `module:Name`, which is called with the space and the seed.
        concurrency: Concurrent trials.

    Raises:
        UserError: there is no such sampler.
    """
    startup = max(STARTUP_TRIALS, concurrency)
    samplers: dict[str, Callable[[Space, int], BaseSampler]] = {
        "tpe": lambda space, seed: TPESampler(
            seed=seed,
            multivariate=True,
            group=any(entry.when for entry in space.ranges.values()),
            constant_liar=True,
            n_startup_trials=startup,
        ),
        "random": lambda space, seed: RandomSampler(seed),
        # Conditional settings are sampled at random.
        "gp": lambda space, seed: GPSampler(
            seed=seed, n_startup_trials=startup, warn_independent_sampling=False
        ),
    }
    make = samplers.get(name) or component("sampler", name, samplers)
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        sampler = make(space, seed)
    if not isinstance(sampler, BaseSampler):
        raise UserError(f"--sampler {name} must return an Optuna sampler, got {sampler!r:.50}.")
    return sampler
