"""Objectives: the images that a run is trained and scored on.

A search must not read the images that it is judged by. `drift` and `base_val` use base-class images of the
train and validation splits only. `oracle_test` reads the test split, to show the bias of such a search.
`final` is the base-to-new protocol, run once after a search. `all_classes` trains and tests on every class.
"""

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from prometar.data.datasets.dataset import Dataset, Items, classnames
from prometar.data.splits.fewshot import (
    MIN_HALVED,
    base_labels,
    base_new,
    by_label,
    draw,
    labels_of,
    select,
    val_of_train,
)
from prometar.errors import UserError
from prometar.io.custom import component, failing, is_reference
from prometar.metrics import harmonic_mean

LEAKS = "objective oracle_test reads the test images: the search leaks, and its figures are no results"


@dataclass(frozen=True)
class Problem:
    """Few-shot training images, and the sets ("base", "new", "all") on which accuracy is measured separately.

    Labels of each set count from 0 over its own classes: base images are classified among base names, new
    ones among new names.

    Args:
        every_epoch: True if accuracy is measured in every epoch. Set by `problem`.
        note: Remark on the split for the user.
        predicts_new: True if accuracy on new classes is predicted from drift (`prometar.training.drift`),
            not measured. Set by `problem`.
    """

    train: Items
    evaluations: Mapping[str, Items]
    every_epoch: bool = False
    note: str = ""
    predicts_new: bool = False

    @property
    def classnames(self) -> tuple[str, ...]:
        return classnames(self.train)


def _require_images(dataset: Dataset, items: Items, labels: Sequence[int], what: str) -> None:
    """Refuse classes without images.

    Raises:
        UserError: some of the classes have no such images.
    """
    missing = sorted(set(labels) - set(labels_of(items)))
    if missing:
        names = {item.label: item.classname for item in dataset.items}
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{dataset.name} has no {what} images of '{names[missing[0]]}'{more}: every class needs some"
        )


def _base_val(dataset: Dataset, shots: int, seed: int, per_class: int) -> Problem:
    """Base-class images alone: the few-shot draw, and up to `per_class` validation images per class."""
    whole, val, note = dataset.train, dataset.val, ""
    if not val:
        whole, val, note = val_of_train(whole)
    train, _ = draw(whole, val, shots=shots, seed=seed)
    _require_images(dataset, val, base_labels(whole), "validation")
    (train, val), _ = base_new(train, val)
    # the same images whatever the run's seed, so that scores are comparable
    rng, groups = random.Random(0), by_label(val).values()
    kept = {item for group in groups for item in rng.sample(group, min(per_class, len(group)))}
    val = tuple(item for item in val if item in kept)
    return Problem(train, {"base": val}, note=note)


def _final(dataset: Dataset, shots: int, seed: int, per_class: int) -> Problem:
    train, _ = draw(dataset.train, dataset.val, shots=shots, seed=seed)
    (train_base, test_base), (_, test_new) = base_new(train, dataset.test)
    # Otherwise there would be one name too few. Classes that are only tested are left out, as in the field.
    labels = labels_of(dataset.train)
    _require_images(dataset, dataset.test, labels, "test")
    if len(labels) < MIN_HALVED:
        raise UserError(
            f"{dataset.name} has too few classes, {len(labels)}: base and new ones are two each at least, "
            "since among one name all is right; add classes, or `prometar train --objective all_classes`"
        )
    return Problem(train_base, {"base": test_base, "new": test_new})


def _all_classes(dataset: Dataset, shots: int, seed: int, per_class: int) -> Problem:
    train, _ = draw(dataset.train, dataset.val, shots=shots, seed=seed)
    labels = labels_of(dataset.train)
    _require_images(dataset, dataset.test, labels, "test")
    _require_images(dataset, dataset.train, labels_of(dataset.test), "training")
    return Problem(select(train, labels), {"all": select(dataset.test, labels)})


@dataclass(frozen=True)
class Objective:
    """Objective: images and score of runs.

    Args:
        problem: Images of (dataset, shots, seed, val_per_class).
        searches: True if a search may use it. Then every epoch is scored.
        leaks: True if it reads the test images.
        predicts: True if the accuracy on new classes is predicted from base images and drift.
        scores_new: True if new classes are scored separately.
        figure: One number of the accuracies in percent by set; more is better.
        title: Name of that number.
    """

    problem: Callable[..., Problem]
    searches: bool = False
    leaks: bool = False
    predicts: bool = False
    scores_new: bool = True
    figure: Callable[[Mapping[str, float]], float] = harmonic_mean
    title: str = "H"


FINAL = "final"
"""Objective of a run outside a search: train on all base classes, test once at the end."""
OBJECTIVES: dict[str, Objective] = {
    "drift": Objective(_base_val, searches=True, predicts=True),
    "base_val": Objective(_base_val, searches=True, scores_new=False, title="base accuracy"),
    "oracle_test": Objective(_final, searches=True, leaks=True),
    FINAL: Objective(_final),
    "all_classes": Objective(_all_classes, scores_new=False, title="accuracy"),
}
SEARCH_OBJECTIVES = tuple(name for name, objective in OBJECTIVES.items() if objective.searches)
"""Objectives that a search may use."""


def objective_of(name: str, known: Iterable[str] = OBJECTIVES) -> Objective:
    """Return an objective by name, or a custom one, `package.module:Name`.

    A function of accuracies by set to one number is scored on the images of `drift`.

    Args:
        known: Names in the message about an unknown one (default: all).

    Raises:
        UserError: unknown, or not an objective.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    found = component("objective", name, known)
    if isinstance(found, Objective):
        return found
    objective = replace(OBJECTIVES["drift"], figure=found, title=name)
    _figure(objective, name, {"base": 80.0, "new": 60.0})
    return objective


def figure_of(name: str, accuracies: Mapping[str, float]) -> float:
    """Return an objective's one number of accuracies in percent.

    Raises:
        UserError: a custom objective fails, or returns something else.
    """
    return _figure(objective_of(name), name, accuracies)


def _figure(objective: Objective, name: str, accuracies: Mapping[str, float]) -> float:
    with failing(name):
        value = objective.figure(accuracies)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{name} must make one finite number of accuracies, found {value!a:.60}")
    return float(value)


def problem(name: str, dataset: Dataset, *, shots: int, seed: int, val_per_class: int = 20) -> Problem:
    """Return the images that the objective `name` trains and scores on.

    Args:
        shots: Training images per class. seed: Seed of the few-shot draw.
        val_per_class: Largest number of validation images per class in a search's score.

    Raises:
        UserError: unknown objective, no validation split, too few classes, or a class without images.
    """
    objective = objective_of(name)
    with failing(name):
        found = objective.problem(dataset, shots, seed, val_per_class)
    if is_reference(name):
        _require_scores(name, objective, found)
    note = LEAKS if objective.leaks else found.note
    return replace(found, note=note, every_epoch=objective.searches, predicts_new=objective.predicts)


def _require_scores(name: str, objective: Objective, found: Problem) -> None:
    """Check the problem of a custom objective before the first trial.

    Raises:
        UserError: it cannot be scored.
    """
    if not isinstance(found, Problem):
        raise UserError(f"{name} must return a Problem, found {type(found).__name__} (docs/extending.md)")
    if not found.evaluations or (objective.predicts and "base" not in found.evaluations):
        needed = "'base' among its evaluations" if objective.predicts else "evaluations"
        raise UserError(f"{name}: its Problem needs {needed}, found {sorted(found.evaluations)}")
    names = [*found.evaluations, *(["new"] if objective.predicts else [])]
    _figure(objective, name, {each: 80.0 - 7 * k for k, each in enumerate(names)})
    for what, items in {"training": found.train, **found.evaluations}.items():
        labels = labels_of(items)
        wanted = labels_of(items if what == "new" else found.train)
        # names are taken from the images: a class without any would shift the names of all behind it
        if labels != wanted or labels != tuple(range(len(labels))):
            raise UserError(f"{name}: its {what} images must have the labels 0 to n - 1 of all classes")
