"""Samplers of settings.

Each trial gets a new sampler, so its settings depend only on the study's seed, the trial's number and the
stored results. A resumed study thus samples the same settings as an uninterrupted one.
"""

import warnings
from collections.abc import Callable

import numpy as np
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from prometar.errors import UserError
from prometar.io.custom import resolve_custom
from tune.space.space import Space

STARTUP_TRIALS = 6
"""Minimum number of results before a model-based sampler is used instead of random sampling."""


def derive_seed(study_seed: int, trial_number: int, duplicates: int) -> int:
    """Return a sampler's seed. `duplicates`: samples already rejected for the trial, as repetitions."""
    return int(np.random.SeedSequence((study_seed, trial_number, duplicates)).generate_state(1)[0])


def make_sampler(name: str, space: Space, seed: int, concurrency: int) -> BaseSampler:
    """Return the sampler of one trial.

    Args:
        name: tpe, random, gp, or a custom `module:Name`, which is called with the space and the seed.
        concurrency: Number of concurrent trials. Model-based samplers wait for at least this many results,
            because the earliest results come from the shortest trials, and would bias the model.

    Raises:
        UserError: the sampler is unknown, or is not an Optuna sampler.
    """
    startup = max(STARTUP_TRIALS, concurrency)
    samplers: dict[str, Callable[[Space, int], BaseSampler]] = {
        "tpe": lambda space, seed: TPESampler(
            seed=seed,
            multivariate=True,
            group=any(entry.when for entry in space.ranges.values()),  # for conditional settings
            constant_liar=True,
            n_startup_trials=startup,
        ),
        "random": lambda _, seed: RandomSampler(seed),
        # GPSampler samples conditional settings at random, and would warn about each of them.
        "gp": lambda _, seed: GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False),
    }
    make = samplers.get(name) or resolve_custom("sampler", name, samplers)
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        sampler = make(space, seed)
    if not isinstance(sampler, BaseSampler):
        raise UserError(f"--sampler {name} must return an Optuna sampler, got {sampler!r:.50}.")
    return sampler
