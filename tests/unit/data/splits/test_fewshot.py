"""Few-shot draws and the split into base and new classes equal those of the published code."""

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prometar.data.datasets.dataset import Dataset, FolderSource, Item, Items
from prometar.data.splits.fewshot import draw, hold_out_val, separate_base_new
from prometar.errors import UserError
from tests.parity.golden import golden_files

GOLDEN = golden_files("fewshot_*.json")


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.name)
def test_fewshot_draws_equal_the_golden_file(file: Path) -> None:
    golden = json.loads(file.read_text())
    train = tuple(Item(*entry) for entry in golden["split"]["train"])
    val = tuple(Item(*entry) for entry in golden["split"]["val"])
    assert golden["draws"]
    for key, expected in golden["draws"].items():
        match = re.fullmatch(r"seed(\d+)-shots(\d+)", key)
        assert match, key
        rng = random.Random(int(match[1]))
        shots = int(match[2])

        # As in the published code, one generator draws from both splits.
        drawn_train = draw(train, shots=shots, rng=rng)
        drawn_val = draw(val, shots=min(shots, 4), rng=rng)

        assert [item.path for item in drawn_train] == expected["train"], key
        assert [item.path for item in drawn_val] == expected["val"], key


def test_the_repository_contains_a_golden_file_of_fewshot_draws() -> None:
    assert any(file.name == "fewshot_dtd10.json" for file in GOLDEN)


def make_items(labels: Sequence[int]) -> Items:
    """Return one image per label."""
    return tuple(Item(f"{label}/{k}.jpg", label, f"class {label}") for k, label in enumerate(labels))


def counts_by_label(items: Iterable[Item]) -> Counter[int]:
    """Return the number of images with each label."""
    return Counter(item.label for item in items)


every_draw = given(
    labels=st.lists(st.integers(0, 9), min_size=1, max_size=60),
    shots=st.integers(1, 6),
    seed=st.integers(0, 99),
)


@every_draw
def test_a_fewshot_draw_takes_shots_images_of_each_class_or_all(
    labels: list[int], shots: int, seed: int
) -> None:
    drawn = draw(make_items(labels), shots=shots, rng=random.Random(seed))
    assert len(set(drawn)) == len(drawn)
    expected = {label: min(shots, labels.count(label)) for label in labels}
    assert counts_by_label(drawn) == expected


@every_draw
def test_a_fewshot_draw_depends_only_on_its_own_generator(labels: list[int], shots: int, seed: int) -> None:
    items = make_items(labels)
    global_state = random.getstate()
    first = draw(items, shots=shots, rng=random.Random(seed))
    second = draw(items, shots=shots, rng=random.Random(seed))
    assert first == second
    assert random.getstate() == global_state


def test_a_fewshot_draw_follows_the_first_appearance_of_labels() -> None:
    items = make_items([7, 7, 7, 2, 2, 2])
    rng = random.Random(5)
    expected = rng.sample(items[:3], 2) + rng.sample(items[3:], 2)
    assert list(draw(items, shots=2, rng=random.Random(5))) == expected


def test_a_fewshot_draw_from_an_empty_split_is_refused() -> None:
    with pytest.raises(UserError, match="empty train split"):
        draw((), shots=1, rng=random.Random(1))


def make_trainable_items(labels: list[int]) -> Items:
    """Return one image per label, and two more images of each of the classes 0 to 6."""
    return make_items([*labels, *range(7), *range(7)])


trainable_items = st.builds(make_trainable_items, st.lists(st.integers(0, 6), min_size=1, max_size=80))


@given(trainable_items)
def test_a_fifth_of_each_class_is_held_out_and_the_rest_remains(items: Items) -> None:
    train, val, note = hold_out_val(items)
    assert Counter([*train, *val]) == Counter(items)
    expected = {label: max(1, count // 5) for label, count in counts_by_label(items).items()}
    assert counts_by_label(val) == expected
    assert f"{len(val)} of the {len(items)} training images" in note


@given(trainable_items, st.integers(0, 99))
def test_held_out_images_do_not_depend_on_the_order_of_the_images(items: Items, seed: int) -> None:
    shuffled = random.Random(seed).sample(items, len(items))
    _, val, _ = hold_out_val(items)
    _, val_of_shuffled, _ = hold_out_val(shuffled)
    assert set(val_of_shuffled) == set(val)


def test_at_most_fifty_images_of_a_class_are_held_out() -> None:
    _, val, _ = hold_out_val(make_items([3] * 1300))
    assert len(val) == 50


def test_no_image_is_held_out_of_a_class_with_a_single_one() -> None:
    with pytest.raises(UserError, match="Class 'class 1' has only one training image"):
        hold_out_val(make_items([0, 0, 1]))


def test_held_out_images_equal_those_of_earlier_versions() -> None:
    _, val, _ = hold_out_val(make_items([0, 1] * 12))
    assert [item.path for item in val] == ["1/13.jpg", "1/15.jpg", "0/16.jpg", "0/18.jpg"]


TRAIN = make_items([9, 1, 5, 3, 9])
TEST = make_items([3, 5, 9])


def base_labels(base_classes: tuple[str, ...] = ()) -> tuple[int, ...]:
    """Return the base labels of a dataset with the training images `TRAIN`."""
    dataset = Dataset(
        "x",
        "x",
        train=TRAIN,
        val=(),
        test=(),
        source=FolderSource(""),
        template="a photo of a {}.",
        base_classes=base_classes,
    )
    return dataset.base_labels


def names_and_labels(items: Items) -> list[tuple[str, int]]:
    return [(item.classname, item.label) for item in items]


def test_the_first_half_of_the_sorted_training_labels_are_base_classes() -> None:
    base, new = separate_base_new(base_labels(), TRAIN, TEST)
    base_train, base_test = base
    new_train, new_test = new
    assert names_and_labels(base_train) == [("class 1", 0), ("class 3", 1)]
    assert names_and_labels(base_test) == [("class 3", 1)]
    assert names_and_labels(new_train) == [("class 9", 1), ("class 5", 0), ("class 9", 1)]
    assert names_and_labels(new_test) == [("class 5", 0), ("class 9", 1)]


def test_the_user_can_choose_the_base_classes() -> None:
    chosen = base_labels(("class 9", "class 3", "class 5"))
    base, new = separate_base_new(chosen, TRAIN, TEST)
    base_train, base_test = base
    new_train, new_test = new
    assert [item.classname for item in base_train] == ["class 9", "class 5", "class 3", "class 9"]
    assert [item.classname for item in base_test] == ["class 3", "class 5", "class 9"]
    assert names_and_labels(new_train) == [("class 1", 0)]
    assert new_test == ()
