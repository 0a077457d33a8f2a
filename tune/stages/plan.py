"""Plan of a study: what would stop it, what determines its results, and how much it trains.

Dataset lists are read. No image is opened, and no weights are loaded unless `load_contents` is called.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prometar.clip.openclip import load_backbone, require_backbone
from prometar.data.datasets.catalog import open_dataset, require_outside
from prometar.data.datasets.dataset import Dataset
from prometar.data.splits.objective import FINAL, SEARCH_OBJECTIVES, Problem, objective_of, problem
from prometar.data.streaming.plan import Plan
from prometar.data.streaming.transforms import TransformSpec
from prometar.errors import UserError
from prometar.io.custom import digest_of, failing, is_reference
from prometar.io.files import size_of
from prometar.methods.composition import build
from prometar.methods.prompts import NoPrompts
from prometar.methods.smoke_test import smoke_test
from prometar.training.drift import drift_identity, foreign_to
from prometar.training.memory import Footprint
from tune.config import StudyConfig
from tune.space.space import EPOCHS
from tune.stages.statistics import BASELINE_RUNS, INTERIM_ANALYSES
from tune.store.pruners import make_pruner
from tune.store.samplers import make_sampler

BATCH = "train.batch_size"


@dataclass(frozen=True)
class StudyPlan:
    """Plan of a study.

    Args:
        stages: Runs, epochs and steps of each stage, at most, and their sums. fewer: When they are less.
        splits: Images of the search and of the final test, by dataset.
        notes: What a user must know about the images.
    """

    stages: Mapping[str, tuple[int, int, int]]
    fewer: Mapping[str, str]
    splits: Mapping[str, tuple[Problem, Problem]]
    datasets: tuple[Dataset, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = []
        for name, (runs, epochs, steps) in self.stages.items():
            fewer = f" ({self.fewer[name]})" if name in self.fewer else ""
            lines += [f"{name}: {runs:,} runs, {epochs:,} epochs, {steps:,} steps{fewer}"] if runs else []
        return "\n".join(lines)


def plan_study(config: StudyConfig) -> StudyPlan:
    """Check everything that needs no weights, and count what the study trains.

    Raises:
        UserError: a dataset is missing or too small, the backbone, sampler or pruner is unknown, or there is
            nothing to search.
    """
    if isinstance(build(config.run).prompts, NoPrompts):
        raise UserError(f"--method {config.run.method} trains nothing. Choose a method with prompts.")
    search, objective = config.search, objective_of(config.search.objective, SEARCH_OBJECTIVES)
    if not objective.searches:
        known = ", ".join(SEARCH_OBJECTIVES)
        raise UserError(f"--objective must be one of {known}, got {search.objective}.")
    if "new" in search.goals and not objective.scores_new:
        raise UserError(f"--goals new: the objective {search.objective} does not score new classes.")
    if not search.space.ranges:
        raise UserError(
            f"--space {search.space.name} contains no setting of {config.run.method}. Choose another."
        )
    if fixed := {"method", "train.seed", "data.name", "data.root"} & search.space.ranges.keys():
        raise UserError(f"--space {search.space.name} must not search {min(fixed)}, which the study sets.")
    _require_values(config)
    with failing(search.sampler):
        make_sampler(search.sampler, search.space, 1, 1)
    with failing(search.pruner):
        make_pruner(search, config.max_epochs, 1)
    weights = config.run.backbone.pretrained
    require_backbone(config.run.backbone.name, weights)
    if weights and weights.endswith(".safetensors") and size_of(Path(weights)) is None:
        raise UserError(f"--pretrained {weights} does not exist.")
    datasets, splits, notes = list[Dataset](), dict[str, tuple[Problem, Problem]](), list[str]()
    for name in search.datasets:
        require_outside(config.location.out / config.name, name, config.run.data.root)
        args = config.run.data.args if name == config.run.data.name else {}
        dataset = open_dataset(name, config.run.data.root, args)
        splits[name] = _problem(config, dataset, search.objective), _problem(config, dataset, FINAL)
        datasets.append(dataset)
        if note := splits[name][0].note:
            notes.append(note)
    stages, fewer = _stages(config, splits)
    return StudyPlan(stages, fewer, splits, tuple(datasets), tuple(dict.fromkeys(notes)))


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
) -> tuple[dict[str, tuple[int, int, int]], dict[str, str]]:
    """Return runs, epochs and steps of each stage, at most, and when they are less."""
    search, confirm, num_sets = config.search, config.confirm, len(splits)
    batch = min([config.run.train.batch_size, *_searched(config, BATCH)])
    searched = sum(_steps_per_epoch(each, batch) for each, _ in splits.values())
    final = sum(_steps_per_epoch(each, batch) for _, each in splits.values())
    candidates = min(confirm.top + 1, search.trials) if confirm.top else 1
    final_epochs = max([config.test.epochs, *_searched(config, EPOCHS)])
    times = {  # seeds in all, epochs, and steps per epoch of all datasets
        "Search": (search.trials * len(search.seeds), config.max_epochs, searched),
        "Confirmation": (candidates * confirm.seeds if candidates > 1 else 0, config.max_epochs, searched),
        "Final test": (2 * len(config.final_seeds), final_epochs, final),
    }
    fewer = {} if search.pruner == "none" else {"Search": "pruned trials end earlier"}
    if config.test.seeds == "auto":
        least = 2 * num_sets * min(INTERIM_ANALYSES)
        same = BASELINE_RUNS * num_sets
        fewer["Final test"] = f"{least} if that is decisive, {same} if the default settings are selected"
    stages = {
        name: (seeds * num_sets, seeds * num_sets * epochs, seeds * epochs * steps)
        for name, (seeds, epochs, steps) in times.items()
    }
    runs, epochs, steps = map(sum, zip(*stages.values(), strict=True))
    return {**stages, "At most": (runs, epochs, steps)}, fewer


def _searched(config: StudyConfig, key: str) -> tuple[int, ...]:
    entry = config.search.space.ranges.get(key)
    return tuple(map(int, entry.tried)) if entry else ()


def _steps_per_epoch(split: Problem, batch_size: int) -> int:
    transform = TransformSpec(size=1, train=True)  # images are only counted
    return Plan(split.train, transform, batch_size=batch_size).steps_per_epoch
