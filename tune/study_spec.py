"""What a study is asked: everything that decides its result, and the numbers that may change later."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

from prometar.config.settings import Config
from prometar.data.datasets.catalog import file_name, require_different
from prometar.data.splits.objective import SEARCH_OBJECTIVES, objective_of, own_objective
from prometar.errors import UserError
from prometar.io.custom import is_reference
from tune.jobs.spec import Job, Leg, Terms
from tune.optimizer.choices import Search
from tune.space.spaces import EPOCHS, Choice

_OF_THE_STUDY = {"method", "train.seed", "data.name", "data.root"}
FRESH_SEEDS_FROM = 1000  # seeds of the last round, beyond those of searches and final comparisons


@dataclass(frozen=True, kw_only=True)
class StudySpec(Search):
    """A study: how its settings are drawn and judged (`Search`), and what is trained.

    Args:
        config: The reference: released settings, the first data set, backbone, epochs, and the first seed of
            every trial, so that all trials share data order and augmentations.
        objective: What a trial is scored on.
        val_per_class: Most validation images a class in a score.
        trials: How many are to be run; more may be asked later.
        datasets: One setting is searched for all of them, scored by the mean (default: config's own).
        seeds_per_trial: Runs of every trial, with seeds counted up from config's (default 1).
        top: How many of the best settings are run again with fresh seeds, beside the released ones, before
            one is called best; 0 for none (default 3). top_seeds: How many fresh seeds (default 2).
        final_seeds: Of the last comparison on the test images.
        matters: The smallest difference on the test that matters, in points of H: pairs of final runs are
            added, in the order of the seeds, until a difference is shown or one that matters is excluded
            (default None: all seeds are run).
    Raises:
        UserError: a number or a name that makes no sense.
    """

    config: Config
    objective: str
    val_per_class: int
    trials: int
    final_seeds: tuple[int, ...]
    datasets: tuple[str, ...] = ()
    seeds_per_trial: int = 1
    top: int = 3
    top_seeds: int = 2
    matters: float | None = None

    def __post_init__(self) -> None:
        for option, number, least, most in (
            ("trials", self.trials, 1, 1_000_000),
            ("val-per-class", self.val_per_class, 1, 1_000_000),
            ("seeds-per-trial", self.seeds_per_trial, 1, 1_000),
            ("top", self.top, 0, 1_000),
            ("top-seeds", self.top_seeds, 1, 1_000),
        ):
            if number < least:
                raise UserError(f"--{option} must be at least {least}, found {number}")
            if number > most:
                raise UserError(f"--{option} must be at most {most:,}, found {number:,}")
        if len(set(self.final_seeds)) != len(self.final_seeds) or not all(map(_is_seed, self.final_seeds)):
            raise UserError(
                f"--final-seeds must be different numbers from 0 to 2^32 - 1, found {self.final_seeds}"
            )
        if self.matters is not None and not 0 < self.matters <= 100:
            raise UserError(f"--matters must be above 0 and at most 100 points, found {self.matters:g}")
        if not all(map(_is_seed, self.seeds)):
            raise UserError(f"--seed must be from 0 to 2^32 - {self.seeds_per_trial}, found {self.seeds[0]}")
        fixed = sorted(
            key for key in self.space.ranges if key in _OF_THE_STUDY or key.startswith("data.args.")
        )
        if fixed:
            raise UserError(f"the space {self.space.name} searches {fixed[0]}, which the study itself sets")
        require_different(self.names)
        objective = objective_of(self.objective, SEARCH_OBJECTIVES)
        if not objective.searches:
            known = ", ".join(SEARCH_OBJECTIVES)
            raise UserError(f"the objective {self.objective} is not for searches: choose one of {known}")
        if not objective.scores_new and "new" in {*self.goals, *(bound.figure for bound in self.bounds)}:
            what = "--goals new" if "new" in self.goals else "a bound on new"
            raise UserError(f"{what}: the objective {self.objective} scores no new classes")
        super().__post_init__()

    @property
    def names(self) -> tuple[str, ...]:
        """The data sets."""
        return self.datasets or (self.config.data.name,)

    def data_args(self, name: str) -> Mapping[str, Any]:
        """The settings of a data set's loader, where it is the user's own."""
        return self.config.data.args if name == self.config.data.name else {}

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of every trial of the search."""
        first = self.config.train.seed
        return tuple(range(first, first + self.seeds_per_trial))

    @property
    def most_epochs(self) -> int:
        """Of a trial: the reference's own, unless longer ones may be drawn."""
        searched = self.space.ranges.get(EPOCHS)
        return max([self.config.train.epochs, *(searched.tried if searched else ())])

    @property
    def least_batch(self) -> int:
        """The smallest batch size of a run: the reference's own, unless smaller ones may be drawn."""
        searched = self.space.ranges.get("train.batch_size")
        return min([self.config.train.batch_size, *(searched.tried if searched else ())])

    @property
    def fresh_seeds(self) -> tuple[int, ...]:
        """Of the last round: no trial of the search and no final run has them."""
        used = {*self.seeds, *self.final_seeds}
        fresh = (seed for seed in count(FRESH_SEEDS_FROM) if seed not in used)
        return tuple(islice(fresh, self.top_seeds))

    @property
    def identity(self) -> dict[str, Any]:
        """What must not change while a study goes on, as a flat mapping."""
        flat = {
            "objective": self.objective,
            "seed": self.seed,
            "sampler": self.sampler,
            "pruner": self.pruner,
            "goals": " ".join(self.goals),
            "val_per_class": self.val_per_class,
            "datasets": " ".join(self.names),
            "seeds_per_trial": self.seeds_per_trial,
        }
        if self.bounds:
            flat["bounds"] = ", ".join(map(str, self.bounds))
        flat |= {f"space.{key}": text for key, text in self.space.describe().items()}
        return flat | self.config.flat()

    def reference(self) -> dict[str, Any]:
        """The released values of the searched settings."""
        return self.space.values_of(self.config)

    def configured(self, settings: Mapping[str, Any], *, dataset: str, seed: int) -> Config:
        """A run's configuration."""
        return self.config.override({**settings, "data.name": dataset, "train.seed": seed}).completed()

    @property
    def own(self) -> set[str]:
        """`package.module:Name` of all parts of the user's own, also of those that trials choose among."""
        configs = [self.config, *(self.config.override({"data.name": name}) for name in self.names)]
        for key, entry in self.space.ranges.items():
            if isinstance(entry, Choice):
                beside = {other: values[0] for other, values in entry.when.items()}
                configs += [self.config.override({**beside, key: value}) for value in entry.choices]
        return {
            *own_objective(self.objective),
            *filter(is_reference, (self.sampler, self.pruner)),
            *(reference for config in configs for reference in config.own.values()),
        }

    def search_job(
        self, settings: dict[str, Any], seeds: tuple[int, ...], folder: str, terms: Terms, *, number: int = 0
    ) -> Job:
        """Settings on the search's own objective: a run for each data set and seed."""
        keys = [(dataset, seed) for dataset in self.names for seed in seeds]
        legs = tuple(
            Leg(
                self.configured(settings, dataset=dataset, seed=seed).model_dump(mode="json"),
                f"{file_name(dataset)}-seed{seed}" if len(keys) > 1 else "",
            )
            for dataset, seed in keys
        )
        return Job(folder, legs, self.objective, settings, self.val_per_class, terms, number)

    def final_job(self, settings: dict[str, Any], dataset: str, seed: int, folder: str, terms: Terms) -> Job:
        """The last comparison's run of these settings on a data set with a seed."""
        config = self.configured(settings, dataset=dataset, seed=seed).model_dump(mode="json")
        return Job(folder, (Leg(config),), "final", settings, self.val_per_class, terms)


def _is_seed(number: int) -> bool:
    return 0 <= number < 2**32
