"""Few-shot draws, held-out validation images, and the split into base and new classes.

The draws and the split of the classes are the same as in the published code (CoOp and Dassl in
mlvlab/ProMetaR, commit c907bdb).
"""

import random
from collections.abc import Collection, Iterable, Sequence

from prometar.data.datasets.dataset import Item, Items
from prometar.errors import UserError

MIN_CLASSES = 4  # two base and two new classes, because accuracy on a single class is always 100%

# Training images per class that are held out for validation if a dataset has no validation split.
HELD_OUT_PERCENT = 20
MAX_HELD_OUT = 50
HELD_OUT_SEED = 0


def draw(train: Sequence[Item], *, shots: int, rng: random.Random, excluded: Collection[str] = ()) -> Items:
    """Draw `shots` training images per class, or all images of a class that has fewer.

    As in the published code, one random generator draws from all classes, in the order of their first
    appearance in `train`. So the draw from a class depends on the classes before it. Pass the complete train
    split, and select base classes after the draw.

    Args:
        train: Training images of all classes.
        shots: Number of images per class.
        rng: Random generator, whose state changes.
        excluded: Paths of images that are not used. An excluded image that is drawn is replaced by the next
            image of its class in `train` that is neither excluded nor drawn. The first image follows the last
            one. If no image is left, fewer than `shots` images are drawn.

    Raises:
        UserError: `train` is empty, or all images of a class are excluded.
    """
    if not train:
        raise UserError("Cannot draw images from an empty train split. Use a dataset with training images.")
    drawn: list[Item] = []
    for group in group_by_label(train).values():
        sample = group
        if len(group) >= shots:
            sample = rng.sample(group, shots)
        chosen = _replace_excluded(sample, group, excluded)
        if not chosen:
            classname = group[0].classname
            raise UserError(f"All training images of '{classname}' are excluded. Every class needs images.")
        drawn += chosen
    return tuple(drawn)


def _replace_excluded(sample: Sequence[Item], group: Sequence[Item], excluded: Collection[str]) -> list[Item]:
    """Return a sample in which other images of the class replace excluded images, as `draw` describes.

    Args:
        sample: Images drawn from a class.
        group: All training images of the class.
        excluded: Paths of excluded images.
    """
    used_paths = {item.path for item in sample}
    if used_paths.isdisjoint(excluded):
        return list(sample)
    result: list[Item] = []
    for item in sample:
        if item.path not in excluded:
            result.append(item)
            continue
        position = group.index(item)
        following = [*group[position + 1 :], *group[:position]]
        for candidate in following:
            if candidate.path not in excluded and candidate.path not in used_paths:
                result.append(candidate)
                used_paths.add(candidate.path)
                break
    return result


def group_by_label(items: Iterable[Item]) -> dict[int, list[Item]]:
    """Group items by label. Labels are in the order of their first appearance."""
    groups: dict[int, list[Item]] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    return groups


def hold_out_val(train: Sequence[Item]) -> tuple[Items, Items, str]:
    """Hold out training images as the validation split of a dataset that has none.

    Of the n images of a class, min(floor(n / 5), 50) are held out, but at least one. All runs hold out the
    same images, which do not depend on the order of `train`. Draw few-shot images only from the remaining
    images, so that no run of a search trains on validation images.

    Args:
        train: Training images of all classes.

    Returns:
        The remaining images, the held-out images, and a note for the user.

    Raises:
        UserError: a class has only one image.

    Example:
        >>> items = [Item(f"{k}.jpg", k % 2, f"class {k % 2}") for k in range(20)]
        >>> rest, held_out, _ = hold_out_val(items)
        >>> len(rest), len(held_out)
        (16, 4)
    """
    held_out: set[Item] = set()
    by_path = sorted(train, key=lambda item: item.path)
    for label, group in group_by_label(by_path).items():
        if len(group) < 2:
            raise UserError(
                f"Class '{group[0].classname}' has only one training image, so none can be held out for "
                "validation. Add a validation split or training images."
            )
        share = len(group) * HELD_OUT_PERCENT // 100
        count = min(max(1, share), MAX_HELD_OUT)
        rng = random.Random(f"{HELD_OUT_SEED} {label}")  # per class, so that classes do not affect each other
        held_out.update(rng.sample(group, count))
    rest = tuple(item for item in train if item not in held_out)
    val = tuple(item for item in train if item in held_out)
    note = (
        f"no validation split: {len(val)} of the {len(train)} training images are held out for the search "
        f"({HELD_OUT_PERCENT}% and at most {MAX_HELD_OUT} images of each class, seed {HELD_OUT_SEED})"
    )
    return rest, val, note


def labels_of(items: Iterable[Item]) -> tuple[int, ...]:
    """Return the distinct labels of `items`, sorted."""
    return tuple(sorted({item.label for item in items}))


def select_and_relabel(items: Iterable[Item], labels: Iterable[int]) -> Items:
    """Select items by label, and renumber the labels from 0. Items and labels keep their relative order."""
    number_by_label = {label: number for number, label in enumerate(sorted(labels))}
    selected: list[Item] = []
    for item in items:
        if item.label in number_by_label:
            selected.append(Item(item.path, number_by_label[item.label], item.classname))
    return tuple(selected)


def separate_base_new(
    base: Collection[int], *splits: Sequence[Item]
) -> tuple[tuple[Items, ...], tuple[Items, ...]]:
    """Return the items of base classes in each split, and the items of new classes in each split.

    The labels of base classes are renumbered from 0, and so are the labels of new classes. All classes of the
    train split that are not base classes are new classes. Items of other classes are dropped, as in the
    published code.

    Args:
        base: Labels of the base classes (`Dataset.base_labels`).
        splits: Train split, followed by any other splits.
    """
    new = set(labels_of(splits[0])) - set(base)
    base_splits = tuple(select_and_relabel(items, base) for items in splits)
    new_splits = tuple(select_and_relabel(items, new) for items in splits)
    return base_splits, new_splits
