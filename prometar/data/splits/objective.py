"""Objectives define which images a run is trained and evaluated on, and how it is scored.

Base classes are the classes of the training images. New classes are tested without training images. By
default, base classes are the first half of a dataset's classes, and new classes are the second half.

The objectives `drift`, `base_val` and `oracle_test` are for searches. A search must not use the images of the
final test, so `drift` and `base_val` use base-class images of the train and validation splits. `oracle_test`
uses test images, to show how biased such a search is.

`final` tests base and new classes separately. It is the objective of final tests and the default of `prometar
train`. `all_classes` does not split the classes.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real

from prometar.config.recipes import Protocol
from prometar.data.datasets.dataset import Dataset, Item, Items, abbreviated, classnames
from prometar.data.splits.fewshot import (
    MIN_CLASSES,
    draw,
    group_by_label,
    hold_out_val,
    labels_of,
    select_and_relabel,
    separate_base_new,
)
from prometar.errors import UserError
from prometar.io.custom import convert_errors, is_custom, resolve_custom
from prometar.metrics import harmonic_mean


@dataclass(frozen=True)
class FewShotSplit:
    """Images on which a run is trained and evaluated. The labels of each set of images start at 0.

    Args:
        train: Few-shot training images.
        evaluations: Evaluation sets by name, such as "base". Each set has its own accuracy, and its images
            are classified among the classes of the set only.
        note: Remark on the split for the user. Empty if there is none.
    """

    train: Items
    evaluations: Mapping[str, Items]
    note: str = ""

    @property
    def classnames(self) -> tuple[str, ...]:
        """Names of the training classes, in the order of their labels."""
        return classnames(self.train)


def _require_images(dataset: Dataset, items: Items, labels: Sequence[int], usage: str) -> None:
    """Raise a UserError if one of `labels` has no images in `items`.

    Class names are taken from images, so a class without images would shift all later labels.

    Args:
        usage: What `items` are used for, such as "test".
    """
    missing_labels = sorted(set(labels) - set(labels_of(items)))
    if missing_labels:
        names = {item.label: item.classname for item in dataset.items}
        first_name = names[missing_labels[0]]
        more = ""
        if len(missing_labels) > 1:
            more = f" ({len(missing_labels)} classes lack images)"
        raise UserError(
            f"{dataset.name} has no {usage} images of '{first_name}'{more}. Every class needs images."
        )


def _split_train_val(dataset: Dataset, shots: int, seed: int, val_per_class: int) -> FewShotSplit:
    """Draw base-class images for training, and at most `val_per_class` validation images per base class."""
    train = dataset.train
    val = dataset.val
    note = ""
    if not val:
        train, val, note = hold_out_val(train)
    _require_images(dataset, val, dataset.base_labels, "validation")
    few_shot = draw(train, shots=shots, rng=random.Random(seed), excluded=dataset.excluded)
    base_splits, _ = separate_base_new(dataset.base_labels, few_shot, val)
    few_shot_base, val_base = base_splits
    return FewShotSplit(few_shot_base, {"base": _sample_val(val_base, val_per_class)}, note=note)


def _sample_val(val: Items, val_per_class: int) -> Items:
    """Sample at most `val_per_class` validation images per class, in their order in `val`.

    The seed is fixed, so that all runs are scored on the same images.
    """
    rng = random.Random(0)
    sampled: set[Item] = set()
    for group in group_by_label(val).values():
        count = min(val_per_class, len(group))
        sampled.update(rng.sample(group, count))
    return tuple(item for item in val if item in sampled)


def _split_base_new(dataset: Dataset, shots: int, seed: int, val_per_class: int) -> FewShotSplit:
    """Draw base-class images for training. Evaluate on all test images, of base and of new classes.

    The argument `val_per_class` is not used.
    """
    few_shot = draw(dataset.train, shots=shots, rng=random.Random(seed), excluded=dataset.excluded)
    base_splits, new_splits = separate_base_new(dataset.base_labels, few_shot, dataset.test)
    few_shot_base, test_base = base_splits
    _, test_new = new_splits
    labels = labels_of(dataset.train)
    _require_images(dataset, dataset.test, labels, "test")
    if len(labels) < MIN_CLASSES:
        raise UserError(
            f"{dataset.name} has {len(labels)} classes, but the split into base and new classes needs at "
            f"least {MIN_CLASSES}. Add classes, or run `prometar train --objective all_classes`."
        )
    return FewShotSplit(few_shot_base, {"base": test_base, "new": test_new})


def _split_all_classes(dataset: Dataset, shots: int, seed: int, val_per_class: int) -> FewShotSplit:
    """Draw images of all classes for training. Evaluate on all test images.

    The argument `val_per_class` is not used.
    """
    few_shot = draw(dataset.train, shots=shots, rng=random.Random(seed), excluded=dataset.excluded)
    labels = labels_of(dataset.train)
    _require_images(dataset, dataset.test, labels, "test")
    _require_images(dataset, dataset.train, labels_of(dataset.test), "training")
    train = select_and_relabel(few_shot, labels)
    test = select_and_relabel(dataset.test, labels)
    return FewShotSplit(train, {"all": test})


@dataclass(frozen=True)
class Objective:
    """Rules for the training images, the evaluation sets and the score of a run.

    Args:
        make_split: Function of (dataset, shots, seed, val_per_class) that returns a `FewShotSplit`.
        for_search: True if a search may use the objective. If so, every epoch is evaluated.
        search_reads_test_images: True if a search with this objective uses test images.
        predicts_new: True if accuracy on new classes is not measured but predicted from base images and from
            drift, the change of predictions among unrelated class names (`prometar.training.drift`).
        has_new_accuracy: True if runs have an accuracy on new classes, measured or predicted.
        score: Function of the accuracies (in percent, by evaluation set). Higher scores are better. Default:
            the harmonic mean.
        title: Name of the score. Default: H, for the harmonic mean.
    """

    make_split: Callable[..., FewShotSplit]
    for_search: bool = False
    search_reads_test_images: bool = False
    predicts_new: bool = False
    has_new_accuracy: bool = True
    score: Callable[[Mapping[str, float]], float] = harmonic_mean
    title: str = "H"


MAX_SCORE = 1e6
"""Largest absolute value that a custom objective may return."""

FINAL = "final"
"""Objective of final tests, and the default of `prometar train`."""
ALL_CLASSES = "all_classes"
"""Objective without a split of the classes."""
OBJECTIVES: dict[str, Objective] = {
    "drift": Objective(_split_train_val, for_search=True, predicts_new=True),
    "base_val": Objective(_split_train_val, for_search=True, has_new_accuracy=False, title="base accuracy"),
    "oracle_test": Objective(_split_base_new, for_search=True, search_reads_test_images=True),
    FINAL: Objective(_split_base_new),
    ALL_CLASSES: Objective(_split_all_classes, has_new_accuracy=False, title="accuracy"),
}


def protocol_of(name: str) -> Protocol:
    """Return the benchmark protocol whose published settings apply to runs with the objective `name`.

    Example:
        >>> protocol_of("drift"), protocol_of("all_classes")
        ('base-to-new', 'few-shot')
    """
    return "few-shot" if name == ALL_CLASSES else "base-to-new"


SEARCH_OBJECTIVES = tuple(name for name, objective in OBJECTIVES.items() if objective.for_search)
"""Names of the built-in objectives that a search may use."""


def objective_of(name: str, known: Iterable[str] = OBJECTIVES) -> Objective:
    """Return an objective by name.

    Args:
        name: Name of a built-in objective, or a reference `package.module:Name` to a custom one. The custom
            component is an `Objective`, or a function of accuracies that replaces the score of `drift`.
        known: Names to list in the error message for an unknown objective. Default: all built-in objectives.

    Raises:
        UserError: the objective is unknown or cannot be loaded, or its score is invalid.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    found = resolve_custom("objective", name, known)
    if isinstance(found, Objective):
        return found
    objective = replace(OBJECTIVES["drift"], score=found, title=name)
    example_accuracies = {"base": 80.0, "new": 60.0}
    _finite_score(objective, name, example_accuracies)  # reject an invalid function before training
    return objective


def score_accuracies(name: str, accuracies: Mapping[str, float]) -> float:
    """Return the score of accuracies (in percent, by evaluation set) under the objective `name`.

    Raises:
        UserError: a custom objective fails, or does not return a number up to ±1e6.
    """
    return _finite_score(objective_of(name), name, accuracies)


def _finite_score(objective: Objective, name: str, accuracies: Mapping[str, float]) -> float:
    """Return the score of accuracies. Raise a UserError if the objective does not return a valid number."""
    with convert_errors(name):
        value = objective.score(accuracies)
    is_valid = isinstance(value, Real) and abs(float(value)) <= MAX_SCORE  # False for NaN
    if not is_valid:
        raise UserError(f"{name} must return a number up to ±1e6, got {value!a:.60}.")
    return float(value)


def split_dataset(
    name: str, dataset: Dataset, *, shots: int, seed: int, val_per_class: int = 20
) -> FewShotSplit:
    """Return the images on which a run with the objective `name` is trained and evaluated.

    Args:
        shots: Training images per class.
        seed: Seed of the few-shot draw.
        val_per_class: Maximum number of validation images per class in a search. Default: 20.

    Raises:
        UserError: the objective is unknown, classes or images are missing, or a custom split is invalid.
    """
    objective = objective_of(name)
    with convert_errors(name):
        split = objective.make_split(dataset, shots, seed, val_per_class)
    if is_custom(name):
        _require_valid_split(name, objective, split)
    if dataset.excluded:
        split = _without_excluded(split, dataset)
    notes = [split.note, _few_images_note(dataset, split, shots)]
    if objective.search_reads_test_images:
        notes.append(
            f"objective {name} uses test images, so the scores of this search are not valid test results"
        )
    return replace(split, note="; ".join(note for note in notes if note))


def _without_excluded(split: FewShotSplit, dataset: Dataset) -> FewShotSplit:
    """Return the split without excluded images.

    Raises:
        UserError: all images of a class are excluded from a set.
    """
    sets = {"training": split.train, **split.evaluations}
    kept: dict[str, Items] = {}
    for name, items in sets.items():
        kept[name] = dataset.without_excluded(items)
        missing_labels = set(labels_of(items)) - set(labels_of(kept[name]))
        if missing_labels:
            classname = classnames(items)[min(missing_labels)]
            raise UserError(
                f"All {name} images of '{classname}' in {dataset.name} are excluded. "
                "Every class needs images."
            )
    evaluations = {name: kept[name] for name in split.evaluations}
    return replace(split, train=kept["training"], evaluations=evaluations)


def _few_images_note(dataset: Dataset, split: FewShotSplit, shots: int) -> str:
    """Return a note if classes have fewer training images than `shots`, or "" if all have enough."""
    few: list[str] = []
    for label, items in group_by_label(split.train).items():
        if len(items) < shots:
            few.append(split.classnames[label])
    if not few:
        return ""
    return (
        f"fewer than data.shots={shots} training images, all of which are used, in these classes of "
        f"{dataset.name}: {abbreviated(few)}"
    )


def _require_valid_split(name: str, objective: Objective, split: FewShotSplit) -> None:
    """Raise a UserError if the split of a custom objective is invalid or cannot be scored."""
    if not isinstance(split, FewShotSplit):
        kind = type(split).__name__
        raise UserError(f"{name} must return a FewShotSplit, got {kind}. See docs/extending.md.")
    example_accuracies: dict[str, float] = {}
    for number, set_name in enumerate(_scored_sets(name, objective, split), 1):
        example_accuracies[set_name] = 80.0 / number
    _finite_score(objective, name, example_accuracies)
    _require_all_classes(name, split)


def _scored_sets(name: str, objective: Objective, split: FewShotSplit) -> list[str]:
    """Return the names of the sets whose accuracies the custom objective `name` scores.

    Raises:
        UserError: the split lacks an evaluation set, or has one that the objective cannot score.
    """
    found = sorted(split.evaluations)
    if objective.predicts_new:
        # A set "new" is allowed, although the objective predicts its accuracy.
        if split.evaluations.keys() - {"new"} != {"base"}:
            raise UserError(f"{name}: its FewShotSplit needs only the evaluation set 'base', found {found}.")
        return ["base", "new"]
    if not split.evaluations:
        raise UserError(f"{name}: its FewShotSplit needs an evaluation set, found {found}.")
    return list(split.evaluations)


def _require_all_classes(name: str, split: FewShotSplit) -> None:
    """Raise a UserError if the labels of a set do not count its classes from 0, or if it lacks classes.

    Only the set "new" may have other classes than the training images.

    Args:
        name: Name of the custom objective.
        split: Split that the objective returned.
    """
    training_labels = labels_of(split.train)
    for set_name, items in {"training": split.train, **split.evaluations}.items():
        labels = labels_of(items)
        counts_from_0 = labels == tuple(range(len(labels)))
        has_all_classes = set_name == "new" or labels == training_labels
        if not counts_from_0 or not has_all_classes:
            raise UserError(f"{name}: {set_name} images must include every class, with labels 0, 1, 2, ...")
