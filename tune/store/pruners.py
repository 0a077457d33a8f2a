"""Pruners: they stop trials that are not promising."""

from collections.abc import Callable

from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)

from prometar.errors import UserError
from prometar.io.custom import component
from tune.config import SearchConfig
from tune.space.space import EPOCHS

PATIENCE = 8
"""Finished trials before a trial is pruned, at least."""
WARMUP = 2
"""Epochs after which no trial is pruned: the first one has only the warm-up rate."""


def make_pruner(search: SearchConfig, epochs: int, concurrency: int) -> BasePruner:
    """Make the pruner of a search.

    Pruners compare trials at the same epoch. If epochs are searched, trials follow different learning-rate
    schedules: a long trial may be behind a short one in epoch 5 and finish ahead. So nothing is pruned then.

    Args:
        epochs: Epochs of a trial.
        concurrency: Concurrent trials. The first wave finishes before a trial is pruned.

    Raises:
        UserError: there is no such pruner, or it does not fit the search.
    """
    name, patience = search.pruner, max(PATIENCE, concurrency)
    pruners: dict[str, Callable[[int], BasePruner]] = {
        # The worst quarter, so that a trial that learns slowly and finishes well is kept.
        "percentile": lambda epochs: PercentilePruner(75.0, n_startup_trials=patience, n_warmup_steps=WARMUP),
        "median": lambda epochs: MedianPruner(n_startup_trials=patience, n_warmup_steps=WARMUP),
        "asha": lambda epochs: SuccessiveHalvingPruner(min_resource=2, reduction_factor=3),
        "hyperband": lambda epochs: HyperbandPruner(2, max(2, epochs), 3),
        "none": lambda epochs: NopPruner(),
    }
    pruner = (pruners.get(name) or component("pruner", name, pruners))(epochs)
    if not isinstance(pruner, BasePruner):
        raise UserError(f"--pruner {name} must return an Optuna pruner, got {type(pruner).__name__}.")
    if not isinstance(pruner, NopPruner) and (EPOCHS in search.space.ranges or len(search.goals) > 1):
        raise UserError(
            f"--pruner {name} compares one goal at the same epoch of trials of equal length, but the search "
            f"has several goals or searches {EPOCHS}. Use --pruner none."
        )
    return pruner
