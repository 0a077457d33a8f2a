"""How much a study trains, known before anything runs: runs, epochs and steps of each of its stages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import NamedTuple

from prometar.clip.openclip import require_backbone
from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.dataset import Dataset
from prometar.data.splits.objective import Problem, problem
from prometar.data.streaming.plan import Plan
from prometar.data.streaming.transforms import TransformSpec
from prometar.errors import UserError
from prometar.methods.composition import build
from prometar.methods.prompts import NoPrompts
from tune.space.fitting import is_used
from tune.space.spaces import EPOCHS
from tune.stages.sequential import ALONE, LOOKS
from tune.study_spec import StudySpec

_COUNTED = ("runs", "epochs", "steps")


def counted(n: int, noun: str) -> str:
    """Return a number with its noun, e.g. "3 seeds"."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


@dataclass(frozen=True)
class Part:
    """A stage: how many runs, epochs and steps at most, and why it may be fewer runs ("" where it is not)."""

    name: str
    runs: int
    epochs: int
    steps: int
    fewer: str = ""

    def __str__(self) -> str:
        counts = ", ".join(
            f"{getattr(self, noun):,} {noun if getattr(self, noun) != 1 else noun[:-1]}" for noun in _COUNTED
        )
        return f"{self.name}: {counts}{f' ({self.fewer})' if self.fewer else ''}"


@dataclass(frozen=True)
class Budget:
    """What a study trains at most.

    Args:
        steps_per_epoch: Of the released settings' trial in the search, all its runs together.
    """

    search: Part
    last_round: Part
    final_test: Part
    steps_per_epoch: int

    @property
    def parts(self) -> tuple[Part, ...]:
        return self.search, self.last_round, self.final_test

    @property
    def total(self) -> Part:
        """All of them."""
        parts = self.parts
        return Part("at most", *(sum(getattr(part, k) for part in parts) for k in _COUNTED))

    def waited(self, at_a_time: int, *, done: float) -> float:
        """Steps that are waited for one after the other, where so many runs go on beside each other.

        `done`: The share of the search that is over.
        """
        turns = (part.steps / part.runs * ceil(part.runs / at_a_time) for part in self.parts if part.runs)
        search, *later = turns
        return search * max(0.0, 1 - done) + sum(later)

    def __str__(self) -> str:
        return "\n".join(str(part) for part in (*self.parts, self.total) if part.runs)


class Steps(NamedTuple):
    """Steps of an epoch on a data set at most: of the search's runs with one seed, and of a final
    run; `released`: of the former with the released settings."""

    search: int
    final: int
    released: int


def headline(spec: StudySpec) -> str:
    """What a study is about, in a line."""
    config, num_runs = spec.config, _runs_per_seed(spec) * len(spec.seeds)
    trials, epochs = counted(spec.trials, "trial"), counted(spec.most_epochs, "epoch")
    up_to = "up to " if EPOCHS in spec.space.ranges else ""
    of_runs = f", each the mean of {num_runs} runs" if num_runs > 1 else ""
    return (
        f"{trials} of {up_to}{epochs}{of_runs}, {config.method} on "
        f"{' + '.join(spec.names)} with {config.backbone.name}, objective {spec.objective}, "
        f"space {spec.space.name}"
    )


def planned(spec: StudySpec) -> Budget:
    """The budget of a study, from its data sets' lists alone: no image is opened, and no weights are loaded.

    Raises:
        UserError: a range that no run takes; a data set that is not there, or has too few classes; a
            backbone that is not supported, or takes no prompts of the method.
    """
    require_space(spec)
    require_backbone(spec.config.backbone.name, spec.config.backbone.pretrained)
    steps = {}
    for name in spec.names:
        dataset = open_dataset(name, spec.config.data.root, spec.data_args(name))
        steps[name] = steps_of(spec, *problems(spec, dataset))
    return budget_of(spec, steps)


def require_space(spec: StudySpec) -> None:
    """Every range must hold the reference; its values must be settings that a run takes and the method uses.

    Raises:
        UserError: one that does not; nothing is trained.
    """
    config, space = spec.config, spec.space
    if isinstance(build(config).prompts, NoPrompts):
        raise UserError(f"{config.method} trains nothing, so there is nothing to search")
    if not space.ranges:
        raise UserError(f"the space {space.name} has nothing that the method uses: choose another --space")
    spec.reference()  # raises for a value outside its range
    for key, entry in space.ranges.items():
        if not is_used(key, entry, space.ranges, config):
            raise UserError(
                f"the space {space.name} searches {key}, which {config.method} does not use with these "
                "settings: choose another --space"
            )


def problems(spec: StudySpec, dataset: Dataset) -> tuple[list[Problem], Problem]:
    """What the search trains on, and what the final test does.

    Raises:
        UserError: see `problem`.
    """
    drawn = partial(
        problem,
        dataset=dataset,
        shots=spec.config.data.shots,
        seed=spec.config.train.seed,
        val_per_class=spec.val_per_class,
    )
    return [drawn(spec.objective)], drawn("final")


def steps_of(spec: StudySpec, searched: list[Problem], final: Problem) -> Steps:
    """How many steps an epoch takes on these images, at the smallest batch size that may be drawn."""
    released, smallest = spec.config.train.batch_size, spec.least_batch
    transform = TransformSpec(size=1, train=True)  # of no matter here: the images are only counted

    def steps(problems: Sequence[Problem], batch_size: int) -> int:
        plans = (Plan(each.train, transform, batch_size=batch_size) for each in problems)
        return sum(plan.steps_per_epoch for plan in plans)

    return Steps(steps(searched, smallest), steps([final], smallest), steps(searched, released))


def budget_of(spec: StudySpec, steps: Mapping[str, Steps]) -> Budget:
    """The budget, from the steps of an epoch on each data set."""
    epochs = spec.most_epochs
    search_steps = sum(each.search for each in steps.values())
    final_steps = sum(each.final for each in steps.values())
    num_seeds, released = len(spec.seeds), sum(each.released for each in steps.values())
    contenders = min(spec.top + 1, spec.trials)
    again = contenders * spec.top_seeds if contenders > 1 else 0
    pairs = len(spec.final_seeds) if spec.matters is None else min(LOOKS[-1].pairs, len(spec.final_seeds))

    def part(name: str, times: int, runs: int, steps_per_epoch: int, fewer: str = "") -> Part:
        return Part(name, times * runs, times * runs * epochs, times * epochs * steps_per_epoch, fewer)

    return Budget(
        part(
            "search", spec.trials * num_seeds, _runs_per_seed(spec), search_steps,
            "" if spec.pruner == "none" else "pruned trials end earlier",
        ),
        part("last round", again, _runs_per_seed(spec), search_steps),
        part("final test", 2 * pairs, len(spec.names), final_steps, _fewer_finals(spec)),
        num_seeds * released,
    )  # fmt: skip


def _fewer_finals(spec: StudySpec) -> str:
    num_sets = len(spec.names)
    if spec.matters is None:
        return f"{len(spec.final_seeds) * num_sets} where the released settings are kept"
    least = min(LOOKS[0].pairs, len(spec.final_seeds)) * 2 * num_sets
    return f"{least} where that decides it, {ALONE * num_sets} where the released settings are kept"


def _runs_per_seed(spec: StudySpec) -> int:
    return len(spec.names)
