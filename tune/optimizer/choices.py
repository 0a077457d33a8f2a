"""How settings are drawn and judged: a study's sampler, pruner and goals, and which of them go together."""

from dataclasses import dataclass

from optuna.pruners import NopPruner

from prometar.errors import UserError
from prometar.io.custom import failing
from tune.optimizer.pruners import FRONT_PRUNERS, pruner_of
from tune.optimizer.samplers import SAMPLERS, Draw, sampler_of
from tune.results.goals import GOALS, Bound, Goal
from tune.space.point_sets import grid_points
from tune.space.spaces import EPOCHS, Space


@dataclass(frozen=True, kw_only=True)
class Search:
    """How settings are drawn and judged.

    Args:
        space: What is searched.
        seed: Of the sampler. Each draw is seeded by (seed, trial number): a restarted study draws what an
            undisturbed one would have drawn, where trials end in the same order.
        sampler: What draws settings (`sampler_of`; default tpe).
        pruner: What stops hopeless trials (`pruner_of`).
        goals: What is optimised (default: the objective alone).
        bounds: What settings must keep to be chosen; samplers avoid what breaks them, and a trial that has
            used up its time is stopped.
    Raises:
        UserError: unknown sampler, pruner or goal, ones that do not go together, or a space that the sampler
            cannot draw from.
    """

    space: Space
    seed: int
    pruner: str
    sampler: str = "tpe"
    goals: tuple[Goal, ...] = ("objective",)
    bounds: tuple[Bound, ...] = ()

    def __post_init__(self) -> None:
        space, goals, pruner, sampler = self.space, self.goals, self.pruner, self.sampler
        prunes = not isinstance(pruner_of(pruner, 1), NopPruner)
        unknown = [goal for goal in goals if goal not in GOALS]
        if unknown or not goals or len(set(goals)) != len(goals):
            raise UserError(f"--goals {' '.join(goals)}: choose different ones of {', '.join(GOALS)}")
        if len(goals) == 1 and goals[0] != "objective":
            raise UserError(
                f"--goals {goals[0]}: one goal alone is the objective; name a second one for a front"
            )
        if len(goals) > 1 and prunes and pruner not in FRONT_PRUNERS:
            known = ", ".join(("none", *FRONT_PRUNERS))
            raise UserError(f"--pruner {pruner} judges by one goal: with several, use one of {known}")
        if EPOCHS in space.ranges and prunes:
            raise UserError(
                f"--pruner {pruner} compares trials at the same epoch, and the space {space.name} searches "
                f"{EPOCHS}: use --pruner none"
            )
        drawing = sampler_of(sampler)
        if len(goals) > 1 and drawing.plain:
            raise UserError(f"--sampler {sampler} has one goal: choose another for {len(goals)} of them")
        if self.bounds and drawing.plain:
            raise UserError(
                f"--sampler {sampler} knows no bounds: choose another for --at-least and --at-most"
            )
        if drawing.enumerates:
            grid_points(space, 0)
        if sampler not in SAMPLERS:
            with failing(sampler):
                drawing.make(Draw(space, 0, 0))
