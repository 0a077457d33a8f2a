"""Few-shot draws, held-out validation images, and the split into base and new classes.

Draws and class splits equal those of the published code (CoOp / Dassl in mlvlab/ProMetaR, commit c907bdb).
"""

import random
from collections.abc import Collection, Iterable, Sequence

from prometar.data.datasets.dataset import Item, Items
from prometar.errors import UserError

MIN_CLASSES = 4  # two base and two new classes, because accuracy on a single class is always 100%

# Validation images of each class of a dataset without a validation split.
HELD_OUT_PERCENT = 20
MAX_HELD_OUT = 50
HELD_OUT_SEED = 0


def draw(train: Sequence[Item], *, shots: int, rng: random.Random, excluded: Collection[str] = ()) -> Items:
    """Draw `shots` training images per class, or all images of a class that has fewer.

    As in the published code, one random generator draws from all classes, in the order of their first
    appearance. The draw from a class depends on the classes before it, so pass the complete train split, and
    select base classes after the draw.

    Args:
        excluded: Paths of images that are not used. If one is drawn, the next image of its class in `train`
            (after the last one, the first) that is neither excluded nor drawn replaces it, if there is one.

    Raises:
        UserError: `train` is empty, or all images of a class are excluded.
    """
    if not train:
        raise UserError("Cannot draw images from an empty train split. Use a dataset with training images.")
    drawn: list[Item] = []
    for group in group_by_label(train).values():
        sample = rng.sample(group, shots) if len(group) >= shots else group
        chosen = _replace_excluded(sample, group, excluded)
        if not chosen:
            raise UserError(
                f"All training images of '{group[0].classname}' are excluded. Every class needs images."
            )
        drawn += chosen
    return tuple(drawn)


def _replace_excluded(sample: Sequence[Item], group: Sequence[Item], excluded: Collection[str]) -> list[Item]:
    """Return the sample from the images of a class, with other images in place of excluded ones."""
    used = {item.path for item in sample}
    if used.isdisjoint(excluded):
        return list(sample)
    replaced: list[Item] = []
    for item in sample:
        if item.path in excluded:
            start = group.index(item)
            following = (*group[start + 1 :], *group[:start])
            candidates = (each for each in following if each.path not in excluded and each.path not in used)
            found = next(candidates, None)
            if found is None:
                continue
            item = found
            used.add(item.path)
        replaced.append(item)
    return replaced


def group_by_label(items: Iterable[Item]) -> dict[int, list[Item]]:
    """Group items by label. Labels are in the order of their first appearance."""
    groups: dict[int, list[Item]] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    return groups


def hold_out_val(train: Sequence[Item]) -> tuple[Items, Items, str]:
    """Hold out training images as the validation split of a dataset that has none.

    Of the n images of a class, min(floor(n / 5), 50) are held out, but at least one. All runs hold out the
    same images, whatever the order of `train`. Draw few-shot images only from the remaining images, so that
    no run of a search trains on validation images.

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
    for label, group in group_by_label(sorted(train, key=lambda item: item.path)).items():
        if len(group) < 2:
            raise UserError(
                f"Class '{group[0].classname}' has only one training image, so none can be held out for "
                "validation. Add a validation split or training images."
            )
        count = min(max(1, len(group) * HELD_OUT_PERCENT // 100), MAX_HELD_OUT)
        held_out.update(random.Random(f"{HELD_OUT_SEED} {label}").sample(group, count))
    val = tuple(item for item in train if item in held_out)
    note = (
        f"no validation split: {len(val)} of the {len(train)} training images are held out for the search "
        f"({HELD_OUT_PERCENT}% and at most {MAX_HELD_OUT} images of each class, seed {HELD_OUT_SEED})"
    )
    return tuple(item for item in train if item not in held_out), val, note


def labels_of(items: Iterable[Item]) -> tuple[int, ...]:
    """Return the distinct labels of `items`, sorted."""
    return tuple(sorted({item.label for item in items}))


def select_and_relabel(items: Iterable[Item], labels: Iterable[int]) -> Items:
    """Select items by label, and renumber the labels from 0. Items and labels keep their relative order."""
    rank = {label: k for k, label in enumerate(sorted(labels))}
    return tuple(Item(item.path, rank[item.label], item.classname) for item in items if item.label in rank)


def separate_base_new(
    base: Collection[int], *splits: Sequence[Item]
) -> tuple[tuple[Items, ...], tuple[Items, ...]]:
    """Return the base items of each split, and the new items of each split, both relabeled from 0.

    The labels of base classes are `base` (`Dataset.base_labels`). The new classes are all others of the first
    split, which must be train. Items whose label is not in train are dropped, as in the published code.
    """
    new = set(labels_of(splits[0])) - set(base)
    base_splits = tuple(select_and_relabel(items, base) for items in splits)
    return base_splits, tuple(select_and_relabel(items, new) for items in splits)
