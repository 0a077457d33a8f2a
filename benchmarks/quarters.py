"""Base classes held out in rotating quarters: an objective for objectives.py to judge."""

import random
from collections.abc import Sequence

from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.dataset import Dataset
from prometar.data.splits.fewshot import base_new, labels_of, select
from prometar.data.splits.objective import Objective, Problem, problem

FOLDS = 4
FEWEST = 2  # classes held out: among fewer there is nothing to take one for another


def held_out(labels: Sequence[int], fold: int) -> tuple[int, ...]:
    """A quarter of the labels, at least two; the folds take turns through one random order."""
    order, size = random.Random(0).sample(labels, len(labels)), max(FEWEST, round(len(labels) / FOLDS))
    return tuple(sorted(order[(fold * size + k) % len(order)] for k in range(size)))


def epochs_of(dataset: str, root: str | None, fold: int, epochs: int) -> int:
    """As many as have the steps of `epochs` on all base classes."""
    (train,), _ = base_new(open_dataset(dataset, root).train)
    base = labels_of(train)
    return round(epochs * len(base) / (len(base) - len(held_out(base, fold))))


def quarters(dataset: Dataset, shots: int, seed: int, per_class: int, fold: int = 0) -> Problem:
    """A quarter of the base classes unseen."""
    whole = problem("base_val", dataset, shots=shots, seed=seed, val_per_class=per_class)
    labels = labels_of(whole.train)
    unseen = held_out(labels, fold)
    seen = [label for label in labels if label not in unseen]
    val = whole.evaluations["base"]
    return Problem(
        select(whole.train, seen), {"base": select(val, seen), "new": select(val, unseen)}, every_epoch=True
    )


QUARTERS = Objective(quarters, searches=True, folds=FOLDS)
