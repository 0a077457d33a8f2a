"""Few-shot draw and class splits, as the field's code computes them, so that results are comparable.

Reference: CoOp / Dassl, as used by ProMetaR (mlvlab/ProMetaR, commit c907bdb).
"""

import random
from collections.abc import Iterable, Sequence

from prometar.data.datasets.dataset import Item, Items
from prometar.errors import UserError

VAL_SHOTS = 4  # the field draws at most four validation images a class
MIN_HALVED = 4  # classes: a half of one class would score 100 % whatever the method does
HELD_OUT_PERCENT, HELD_OUT_MOST, HELD_OUT_SEED = 20, 50, 0  # of a class without validation images


def draw(train: Sequence[Item], val: Sequence[Item], *, shots: int, seed: int) -> tuple[Items, Items]:
    """Draw `shots` training images a class, then min(shots, 4) validation images from the same generator.

    Draw from the whole lists and select classes afterwards: the generator runs over all labels in the order
    of their first appearance. A class with fewer images gives all of them.

    Raises:
        UserError: an empty train list.
    """
    if not train:
        raise UserError(
            "cannot draw few-shot images: the train split is empty (ImageNet's variants are for testing only)"
        )
    rng = random.Random(seed)
    return _sample(train, shots, rng), _sample(val, min(shots, VAL_SHOTS), rng)


def _sample(items: Sequence[Item], shots: int, rng: random.Random) -> Items:
    drawn: list[Item] = []
    for group in by_label(items).values():
        drawn += rng.sample(group, shots) if len(group) >= shots else group
    return tuple(drawn)


def by_label(items: Iterable[Item]) -> dict[int, list[Item]]:
    """The items of each label, in the order of its first appearance."""
    groups: dict[int, list[Item]] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    return groups


def val_of_train(train: Sequence[Item]) -> tuple[Items, Items, str]:
    """A validation split for a dataset that has none: images of `train`, which then go without them.

    Of each class min(floor(n / 5), 50) images, at least one: the same for every run, whatever the order of
    `train`. Draw few-shot images from the `train` that is returned, never from the whole one: then a search
    is scored on no image that any of its runs learns from.

    Returns:
        `train` without the images held out, those images, and a line that says what was done.

    Raises:
        UserError: a class with one image.

    Example:
        >>> items = [Item(f"{k}.jpg", k % 2, f"class {k % 2}") for k in range(20)]
        >>> rest, held_out, _ = val_of_train(items)
        >>> len(rest), len(held_out)
        (16, 4)
    """
    chosen: set[Item] = set()
    for label, group in by_label(sorted(train, key=lambda item: item.path)).items():
        if len(group) < 2:
            raise UserError(
                f"class '{group[0].classname}' has one training image: there is no validation split, and "
                "nothing can be held out to search on"
            )
        count = min(max(1, len(group) * HELD_OUT_PERCENT // 100), HELD_OUT_MOST)
        chosen.update(random.Random(f"{HELD_OUT_SEED} {label}").sample(group, count))
    val = tuple(item for item in train if item in chosen)
    message = (
        f"there is no validation split: the search is scored on {len(val)} of the {len(train)} training "
        f"images ({HELD_OUT_PERCENT} % of each class, {HELD_OUT_MOST} at most, seed {HELD_OUT_SEED}) and "
        "trains on others"
    )
    return tuple(item for item in train if item not in chosen), val, message


def labels_of(items: Iterable[Item]) -> tuple[int, ...]:
    """The labels that occur, sorted."""
    return tuple(sorted({item.label for item in items}))


def select(items: Iterable[Item], labels: Iterable[int]) -> Items:
    """The items of `labels`, in their order, relabelled from 0 in the order of the sorted labels."""
    rank = {label: i for i, label in enumerate(sorted(labels))}
    return tuple(Item(i.path, rank[i.label], i.classname) for i in items if i.label in rank)


def base_labels(items: Iterable[Item]) -> tuple[int, ...]:
    """The first ceil(n/2) of the labels that occur."""
    labels = labels_of(items)
    return labels[: (len(labels) + 1) // 2]


def base_new(*splits: Sequence[Item]) -> tuple[tuple[Items, ...], tuple[Items, ...]]:
    """Each split's base items, and each split's new items; both relabelled from 0.

    Base are the first ceil(n/2) of the labels of the *first* split (pass train first), new the rest.
    """
    base = base_labels(splits[0])
    new = set(labels_of(splits[0])) - set(base)
    return tuple(select(s, base) for s in splits), tuple(select(s, new) for s in splits)
