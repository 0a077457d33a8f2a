"""The few-shot draw replays the field's draws; class splits follow its rule."""

import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prometar.data.datasets.dataset import Dataset, FolderSource, Item, Items
from prometar.data.splits.fewshot import draw, hold_out_val, labels_of, separate_base_new
from prometar.errors import UserError
from tests.parity.golden import golden_files

GOLDEN = golden_files("fewshot_*.json")


@pytest.mark.parametrize("file", GOLDEN, ids=lambda file: file.name)
def test_fewshot_draws_equal_the_golden_file(file: Path) -> None:
    tree = json.loads(file.read_text())
    train, val = (tuple(Item(*row) for row in tree["split"][name]) for name in ("train", "val"))
    assert tree["draws"]
    for key, want in tree["draws"].items():
        match = re.fullmatch(r"seed(\d+)-shots(\d+)", key)
        assert match, key
        rng = random.Random(int(match[1]))
        shots = int(match[2])
        drawn = draw(train, shots=shots, rng=rng), draw(val, shots=min(shots, 4), rng=rng)
        assert [[item.path for item in items] for items in drawn] == [want["train"], want["val"]], key


def test_fewshot_the_repository_holds_a_golden_file() -> None:
    assert any(file.name == "fewshot_dtd10.json" for file in GOLDEN)


def _items(labels: list[int]) -> tuple[Item, ...]:
    return tuple(Item(f"{label}/{k}.jpg", label, f"class {label}") for k, label in enumerate(labels))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 6), st.integers(0, 99))
def test_fewshot_draw_takes_shots_of_each_label_or_all(labels: list[int], shots: int, seed: int) -> None:
    items = _items(labels)
    state = random.getstate()
    drawn = draw(items, shots=shots, rng=random.Random(seed))
    assert random.getstate() == state
    assert drawn == draw(items, shots=shots, rng=random.Random(seed))
    assert len(set(drawn)) == len(drawn)
    counts = {label: sum(item.label == label for item in drawn) for label in labels_of(items)}
    assert counts == {label: min(shots, labels.count(label)) for label in labels_of(items)}


def test_fewshot_draw_follows_first_appearance_not_label_order() -> None:
    items = _items([7, 7, 7, 2, 2, 2])
    rng = random.Random(5)
    want = rng.sample(items[:3], 2) + rng.sample(items[3:], 2)
    assert list(draw(items, shots=2, rng=random.Random(5))) == want


def test_fewshot_draw_needs_training_images() -> None:
    with pytest.raises(UserError, match="empty train split"):
        draw((), shots=1, rng=random.Random(1))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=80), st.integers(1, 9), st.integers(0, 99))
def test_held_out_images_are_a_fifth_of_a_class_never_drawn(labels: list[int], shots: int, seed: int) -> None:
    items = _items([*labels, *range(7), *range(7)])
    train, val, message = hold_out_val(items)
    assert sorted((*train, *val), key=lambda i: i.path) == sorted(items, key=lambda i: i.path)
    for label in range(7):
        count = sum(item.label == label for item in items)
        assert sum(item.label == label for item in val) == max(1, count // 5)
    assert not {*draw(train, shots=shots, rng=random.Random(seed))} & {*val}
    shuffled = random.Random(seed).sample(items, len(items))
    assert {*hold_out_val(shuffled)[1]} == {*val}
    assert f"{len(val)} of the {len(items)} training images" in message


def test_at_most_fifty_images_of_a_class_are_held_out() -> None:
    _, val, _ = hold_out_val(_items([3] * 1300))
    assert len(val) == 50
    with pytest.raises(UserError, match="Class 'class 1' has only one training image"):
        hold_out_val(_items([0, 0, 1]))


def test_held_out_images_are_the_same_for_ever() -> None:
    _, val, _ = hold_out_val(_items([0, 1] * 12))
    assert [item.path for item in val] == ["1/13.jpg", "1/15.jpg", "0/16.jpg", "0/18.jpg"]


def _dataset(train: Items, base_classes: tuple[str, ...] = ()) -> Dataset:
    source = FolderSource("")
    return Dataset("x", "x", train, (), (), source, "a photo of a {}.", base_classes=base_classes)


def test_the_user_can_choose_the_base_classes() -> None:
    train = _items([9, 1, 5, 3, 9])
    test = _items([3, 5, 9])
    base_labels = _dataset(train, ("class 9", "class 3", "class 5")).base_labels
    base, new = separate_base_new(base_labels, train, test)
    assert [[i.classname for i in part] for part in base] == [
        ["class 9", "class 5", "class 3", "class 9"],
        ["class 3", "class 5", "class 9"],
    ]
    assert [[(i.classname, i.label) for i in part] for part in new] == [[("class 1", 0)], []]


def test_base_new_halves_the_sorted_labels_of_the_first_split() -> None:
    train = _items([9, 1, 5, 3, 9])
    test = _items([3, 5, 9])
    base, new = separate_base_new(_dataset(train).base_labels, train, test)
    assert [[(i.classname, i.label) for i in part] for part in base] == [
        [("class 1", 0), ("class 3", 1)],
        [("class 3", 1)],
    ]
    assert [[i.label for i in part] for part in new] == [[1, 0, 1], [0, 1]]
