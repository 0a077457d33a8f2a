"""Pruners, which stop unpromising trials early."""

from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)

from prometar.errors import UserError
from prometar.io.custom import resolve_custom
from tune.config import SearchConfig
from tune.space.space import EPOCHS_KEY

STARTUP_TRIALS = 8
"""Minimum number of completed trials before the percentile and median pruners prune a trial."""
MIN_EPOCHS = 2
"""Minimum number of epochs before a trial is pruned. The first epoch uses only the warm-up learning rate."""


def make_pruner(search: SearchConfig, max_epochs: int, concurrency: int) -> BasePruner:
    """Return the pruner of a search.

    Pruners compare trials at the same epoch, so they require learning rate schedules of equal length. With
    different numbers of epochs, a long trial may be worse than a short one at epoch 5, but better in the end.

    Args:
        search: Configuration of the search, with the name of the pruner.
        max_epochs: Maximum number of epochs of a trial. It is passed to a custom pruner (`module:Name`).
        concurrency: Number of concurrent trials. `percentile` and `median` wait for at least as many.

    Raises:
        UserError: the pruner is unknown, is not an Optuna pruner, or cannot be used for this search.
    """
    name = search.pruner
    limits = {"n_startup_trials": max(STARTUP_TRIALS, concurrency), "n_warmup_steps": MIN_EPOCHS}
    pruners: dict[str, BasePruner] = {
        # Only the worst quarter is pruned, because a trial may start slowly and end with a high score.
        "percentile": PercentilePruner(75.0, **limits),
        "median": MedianPruner(**limits),
        "asha": SuccessiveHalvingPruner(MIN_EPOCHS, reduction_factor=3),
        "hyperband": HyperbandPruner(MIN_EPOCHS, max(MIN_EPOCHS, max_epochs), reduction_factor=3),
        "none": NopPruner(),
    }
    pruner = pruners.get(name)
    if pruner is None:
        make_custom = resolve_custom("pruner", name, pruners)
        pruner = make_custom(max_epochs)
    if not isinstance(pruner, BasePruner):
        raise UserError(f"--pruner {name} must return an Optuna pruner, got {type(pruner).__name__}.")
    if isinstance(pruner, NopPruner):
        return pruner
    if len(search.goals) > 1:
        raise UserError(f"--pruner {name} requires a single goal. Use --pruner none.")
    if EPOCHS_KEY in search.space.ranges:
        raise UserError(f"--pruner {name} requires a --space without {EPOCHS_KEY}. Use --pruner none.")
    return pruner
