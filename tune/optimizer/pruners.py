"""What stops hopeless trials: by name, a function of a whole trial's epochs to Optuna's pruner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)

from prometar.errors import UserError
from prometar.parts.building import own_part
from prometar.parts.reference import failing

# None is judged by its first epoch, which trains at the warm-up rate alone.
PRUNERS: dict[str, Callable[[int], BasePruner]] = {
    # The worst quarter: what learns slowly and ends well stays.
    "hopeless": lambda epochs: PercentilePruner(75.0, n_startup_trials=8, n_warmup_steps=2),
    "median": lambda epochs: MedianPruner(n_startup_trials=8, n_warmup_steps=2),
    "asha": lambda epochs: SuccessiveHalvingPruner(min_resource=2, reduction_factor=3),
    "hyperband": lambda epochs: HyperbandPruner(
        min_resource=2, max_resource=max(2, epochs), reduction_factor=3
    ),
    "none": lambda epochs: NopPruner(),
}


@dataclass(frozen=True)
class FrontPruner:
    """Stops what lies behind `share` of the finished trials in every one of several goals, at the same epoch.

    Args:
        startup: Finished trials before anything is stopped. warmup: Epochs that are not judged.
    """

    share: float
    startup: int = 8
    warmup: int = 2

    def stops(self, epoch: int, own: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
        """`own` and `others` are losses: less is better.

        Example:
            >>> FrontPruner(0.75, startup=2, warmup=0).stops(1, [3.0, 3.0], [[1.0, 2.0], [2.0, 1.0]])
            True
        """
        if epoch <= self.warmup or len(others) < self.startup:
            return False
        ahead = sum(all(a < b for a, b in zip(other, own, strict=True)) for other in others)
        return ahead >= self.share * len(others)


FRONT_PRUNERS: dict[str, FrontPruner] = {"hopeless": FrontPruner(0.75)}
"""Of several goals, by the same names as of one."""


def pruner_of(name: str, epochs: int) -> BasePruner:
    """A pruner by name, or the user's own, `package.module:Name`.

    Raises:
        UserError: unknown, or a part that makes none.
    """
    if name in PRUNERS:
        return PRUNERS[name](epochs)
    found = own_part("pruner", name, PRUNERS)
    with failing(name):
        made = found(epochs)
    if not isinstance(made, BasePruner):
        raise UserError(
            f"{name} must make an Optuna pruner of a number of epochs, found {type(made).__name__}"
        )
    return made
