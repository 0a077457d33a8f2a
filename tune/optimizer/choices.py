"""What a study's pruner and goals may be, and which of them go together."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.pruners import NopPruner

from prometar.errors import UserError
from tune.optimizer.pruners import FRONT_PRUNERS, pruner_of
from tune.optimizer.samplers import require_sampler
from tune.results.goals import GOALS, Bound
from tune.space.spaces import EPOCHS, Space


def require_choices(
    space: Space, *, sampler: str, pruner: str, goals: Sequence[str], bounds: Sequence[Bound] = ()
) -> None:
    """
    Raises:
        UserError: unknown sampler, pruner or goal, or ones that do not go together.
    """
    prunes = not isinstance(pruner_of(pruner, 1), NopPruner)
    unknown = [goal for goal in goals if goal not in GOALS]
    if unknown or not goals or len(set(goals)) != len(goals):
        raise UserError(f"--goals {' '.join(goals)}: choose different ones of {', '.join(GOALS)}")
    if len(goals) == 1 and goals[0] != "objective":
        raise UserError(f"--goals {goals[0]}: one goal alone is the objective; name a second one for a front")
    if len(goals) > 1 and prunes and pruner not in FRONT_PRUNERS:
        known = ", ".join(("none", *FRONT_PRUNERS))
        raise UserError(f"--pruner {pruner} judges by one goal: with several, use one of {known}")
    if EPOCHS in space.ranges and prunes:
        raise UserError(
            f"--pruner {pruner} compares trials at the same epoch, and the space {space.name} searches "
            f"{EPOCHS}: use --pruner none"
        )
    require_sampler(sampler, space, num_goals=len(goals), bounded=bool(bounds))
