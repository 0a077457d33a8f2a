"""What stops hopeless trials: by name, a function of a whole trial's epochs to Optuna's pruner."""

from collections.abc import Callable, Sequence

from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)

from prometar.errors import UserError
from prometar.io.custom import component, failing

_STARTUP = 8  # finished trials before anything is stopped
_WARMUP = 2  # epochs that are not judged: the first trains at the warm-up rate alone

PRUNERS: dict[str, Callable[[int], BasePruner]] = {
    # The worst quarter: what learns slowly and ends well stays.
    "hopeless": lambda epochs: PercentilePruner(75.0, n_startup_trials=_STARTUP, n_warmup_steps=_WARMUP),
    "median": lambda epochs: MedianPruner(n_startup_trials=_STARTUP, n_warmup_steps=_WARMUP),
    "asha": lambda epochs: SuccessiveHalvingPruner(min_resource=2, reduction_factor=3),
    "hyperband": lambda epochs: HyperbandPruner(
        min_resource=2, max_resource=max(2, epochs), reduction_factor=3
    ),
    "none": lambda epochs: NopPruner(),
}


def lies_behind(epoch: int, own: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
    """Whether three quarters of the finished trials are ahead in every one of several goals, at this epoch.

    Nothing is said of the first two epochs, nor before eight trials have finished.

    Args:
        own, others: Losses: less is better.

    Example:
        >>> lies_behind(3, [3.0, 3.0], [[1.0, 2.0], [2.0, 1.0]] * 4)
        True
    """
    if epoch <= _WARMUP or len(others) < _STARTUP:
        return False
    ahead = sum(all(a < b for a, b in zip(other, own, strict=True)) for other in others)
    return ahead >= 0.75 * len(others)


FRONT_PRUNERS: dict[str, Callable[[int, Sequence[float], Sequence[Sequence[float]]], bool]] = {
    "hopeless": lies_behind
}
"""Of several goals, by the same names as of one."""


def pruner_of(name: str, epochs: int) -> BasePruner:
    """A pruner by name, or the user's own, `package.module:Name`.

    Raises:
        UserError: unknown, or a part that makes none.
    """
    if name in PRUNERS:
        return PRUNERS[name](epochs)
    found = component("pruner", name, PRUNERS)
    with failing(name):
        made = found(epochs)
    if not isinstance(made, BasePruner):
        raise UserError(
            f"{name} must make an Optuna pruner of a number of epochs, found {type(made).__name__}"
        )
    return made
