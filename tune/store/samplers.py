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
    """Return the seed of the sampler of a trial.

    Args:
        study_seed: Seed of the study.
        trial_number: Number of the trial.
        duplicates: Number of samples that were rejected for this trial, because they repeat earlier settings.
    """
    sequence = np.random.SeedSequence((study_seed, trial_number, duplicates))
    return int(sequence.generate_state(1)[0])


def make_sampler(name: str, space: Space, seed: int, concurrency: int) -> BaseSampler:
    """Return the sampler of one trial.

    Args:
        name: tpe, random, gp, or a custom `module:Name`, which is called with the space and the seed.
        space: Search space.
        seed: Seed of this sampler (see `derive_seed`).
        concurrency: Number of concurrent trials. Model-based samplers wait for at least this many results,
            because the earliest results come from the shortest trials, and would bias the model.

    Raises:
        UserError: the sampler is unknown, or is not an Optuna sampler.
    """
    num_startup = max(STARTUP_TRIALS, concurrency)

    def make_tpe(space: Space, seed: int) -> BaseSampler:
        has_conditional_settings = any(entry.when for entry in space.ranges.values())
        return TPESampler(
            seed=seed,
            multivariate=True,
            group=has_conditional_settings,
            constant_liar=True,
            n_startup_trials=num_startup,
        )

    def make_random(space: Space, seed: int) -> BaseSampler:
        return RandomSampler(seed)

    def make_gp(space: Space, seed: int) -> BaseSampler:
        # GPSampler samples conditional settings at random, and would warn about each of them.
        return GPSampler(seed=seed, n_startup_trials=num_startup, warn_independent_sampling=False)

    samplers: dict[str, Callable[[Space, int], BaseSampler]] = {
        "tpe": make_tpe,
        "random": make_random,
        "gp": make_gp,
    }
    make = samplers.get(name)
    if make is None:
        make = resolve_custom("sampler", name, samplers)
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        sampler = make(space, seed)
    if not isinstance(sampler, BaseSampler):
        raise UserError(f"--sampler {name} must return an Optuna sampler, got {sampler!r:.50}.")
    return sampler
