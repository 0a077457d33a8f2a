"""Plan of a study: what would stop it, what determines its results, and how much it trains.

Dataset lists are read. No image is opened, and no weights are loaded unless `load_contents` is called.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from prometar.clip.openclip import load_backbone, require_backbone
from prometar.data.datasets.catalog import open_dataset, require_outside
from prometar.data.datasets.dataset import Dataset
from prometar.data.splits.objective import FINAL, Problem, problem
from prometar.data.streaming.plan import Plan
from prometar.data.streaming.transforms import TransformSpec
from prometar.errors import UserError
from prometar.io.custom import digest_of, failing, is_reference
from prometar.methods.composition import build
from prometar.methods.prompts import NoPrompts
from prometar.methods.smoke_test import smoke_test
from prometar.training.drift import drift_identity, foreign_to
from prometar.training.memory import Footprint
from tune.config import StudyConfig
from tune.space.space import EPOCHS
from tune.stages.confirmation import candidates_at_most
from tune.stages.statistics import BASELINE_RUNS, INTERIM_ANALYSES
from tune.store.pruners import make_pruner
from tune.store.samplers import make_sampler

BATCH = "train.batch_size"


@dataclass(frozen=True)
class StageCost:
    """Training of a stage, at most.

    Args:
        fewer: When it is less.
    """

    name: str
    runs: int
    epochs: int
    steps: int
    fewer: str = ""

    def __str__(self) -> str:
        counts = f"{self.runs:,} runs, {self.epochs:,} epochs, {self.steps:,} steps"
        return f"{self.name}: {counts}{f' ({self.fewer})' if self.fewer else ''}"


@dataclass(frozen=True)
class StudyPlan:
    """Plan of a study.

    Args:
        stages: Search, confirmation, final test.
        splits: Images of the search and of the final test, by dataset.
        notes: What a user must know about the images.
    """

    stages: tuple[StageCost, ...]
    splits: Mapping[str, tuple[Problem, Problem]]
    datasets: tuple[Dataset, ...]
    notes: tuple[str, ...]

    @property
    def total(self) -> StageCost:
        """Sum of all stages."""
        sums = (sum(getattr(stage, key) for stage in self.stages) for key in ("runs", "epochs", "steps"))
        return StageCost("At most", *sums)

    def waves(self, concurrent: int) -> float:
        """Return the steps that pass one after the other with so many concurrent runs."""
        return sum(s.steps / s.runs * ceil(s.runs / concurrent) for s in self.stages if s.runs)

    def __str__(self) -> str:
        return "\n".join(str(stage) for stage in (*self.stages, self.total) if stage.runs)


def plan_study(config: StudyConfig) -> StudyPlan:
    """Check everything that needs no weights, and count what the study trains.

    Raises:
        UserError: a dataset is missing or too small, the backbone, sampler or pruner is unknown, or there is
            nothing to search.
    """
    if isinstance(build(config.run).prompts, NoPrompts):
        raise UserError(f"--method {config.run.method} trains nothing. Choose a method with prompts.")
    if not config.search.space.ranges:
        raise UserError(
            f"--space {config.search.space.name} contains no setting of {config.run.method}. Choose another."
        )
    _require_values(config)
    with failing(config.search.sampler):
        make_sampler(config.search.sampler, config.search.space, 1, 1)
    with failing(config.search.pruner):
        make_pruner(config.search, config.max_epochs, 1)
    require_backbone(config.run.backbone.name, config.run.backbone.pretrained)
    datasets, splits, notes = list[Dataset](), dict[str, tuple[Problem, Problem]](), list[str]()
    for name in config.search.datasets:
        require_outside(config.location.out / config.name, name, config.run.data.root)
        args = config.run.data.args if name == config.run.data.name else {}
        dataset = open_dataset(name, config.run.data.root, args)
        splits[name] = (
            _problem(config, dataset, config.search.objective),
            _problem(config, dataset, FINAL),
        )
        datasets.append(dataset)
        if note := splits[name][0].note:
            notes.append(note)
    return StudyPlan(_stages(config, splits), splits, tuple(datasets), tuple(dict.fromkeys(notes)))


def load_contents(config: StudyConfig, plan: StudyPlan) -> tuple[dict[str, str], Footprint]:
    """Load the weights.

    Returns:
        Digests of what determines results beside settings, by name, and sizes that determine the memory.

    Raises:
        UserError: the weights are missing, the method does not fit them, or drift cannot be measured for a
            dataset.
    """
    search = config.search
    backbone = load_backbone(config.run.backbone.name, config.run.backbone.pretrained)
    smoke_test(config.run, backbone.clip)
    contents = {f"split of {dataset.name}": dataset.digest[:12] for dataset in plan.datasets}
    contents["weights"] = backbone.digest[:12]
    components = [search.objective, search.sampler, search.pruner, *config.run.own.values()]
    contents |= {f"code of {name}": digest_of(name)[:12] for name in components if is_reference(name)}
    splits = [split for both in plan.splits.values() for split in both]
    if any(split.predicts_new for split in splits):
        contents["drift"] = drift_identity(backbone)
        for dataset in plan.datasets:
            foreign_to(dataset, backbone.vocabulary)
    return contents, Footprint.of(backbone.clip, splits)


def _require_values(config: StudyConfig) -> None:
    """Check that the baseline lies in the space and that a run accepts the ends of every range.

    Raises:
        UserError: with the setting.
    """
    known = config.baseline
    for key, entry in config.search.space.ranges.items():
        conditions = {other: values[0] for other, values in entry.when.items()}
        for value in entry.tried:
            build(config.run.override({**known, **conditions, key: value}))


def _problem(config: StudyConfig, dataset: Dataset, objective: str) -> Problem:
    return problem(
        objective,
        dataset,
        shots=config.run.data.shots,
        seed=config.run.train.seed,
        val_per_class=config.search.val_per_class,
    )


def _stages(
    config: StudyConfig, splits: Mapping[str, tuple[Problem, Problem]]
) -> tuple[StageCost, StageCost, StageCost]:
    search, confirm = config.search, config.confirm
    num_sets, num_seeds = len(splits), len(search.seeds)
    batch = min([config.run.train.batch_size, *_searched(config, BATCH)])
    searched = sum(_steps_per_epoch(each, batch) for each, _ in splits.values())
    final = sum(_steps_per_epoch(each, batch) for _, each in splits.values())
    again = candidates_at_most(search.trials, confirm.top) * confirm.seeds
    pairs, fewer = len(config.final_seeds), ""
    if config.test.seeds == "auto":
        least = 2 * num_sets * INTERIM_ANALYSES[0].pairs
        fewer = (
            f"{least} if that is decisive, {BASELINE_RUNS * num_sets} if the default settings are selected"
        )
    pruned = "" if search.pruner == "none" else "pruned trials end earlier"
    final_epochs = max([config.test.epochs, *_searched(config, EPOCHS)])

    def cost(name: str, times: int, epochs: int, steps: int, fewer: str = "") -> StageCost:
        runs = times * num_sets
        return StageCost(name, runs, runs * epochs, times * epochs * steps, fewer)

    return (
        cost("Search", search.trials * num_seeds, config.max_epochs, searched, pruned),
        cost("Confirmation", again, config.max_epochs, searched),
        cost("Final test", 2 * pairs, final_epochs, final, fewer),
    )


def _searched(config: StudyConfig, key: str) -> tuple[int, ...]:
    entry = config.search.space.ranges.get(key)
    return tuple(map(int, entry.tried)) if entry else ()


def _steps_per_epoch(split: Problem, batch_size: int) -> int:
    transform = TransformSpec(size=1, train=True)  # images are only counted
    return Plan(split.train, transform, batch_size=batch_size).steps_per_epoch
