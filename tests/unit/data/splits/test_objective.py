"""Objectives: their images and scores, custom ones, and classes without images."""

from dataclasses import replace
from pathlib import Path

import pytest

from prometar.data.datasets.dataset import Dataset, FolderSource, Item
from prometar.data.splits.objective import objective_of, score_accuracies, split_dataset
from prometar.errors import UserError

MINE = """
import math
from dataclasses import replace
from functools import partial

from prometar.data.splits.objective import Objective, split_dataset

def lower(accuracies):
    return min(accuracies.values())

def later(accuracies):  # as expected when it is tried, and not afterwards
    return {80.0: 1.0, 40.0: math.nan, 50.0: "50", 60.0: math.inf, 90.0: 5e6}[accuracies["base"]]

def nothing(accuracies):
    return None

def made(dataset, shots, seed, per_class, **changes):
    return replace(split_dataset("base_val", dataset, shots=shots, seed=seed), **changes)

blind = Objective(partial(made, evaluations={}), for_search=True)
baseless = Objective(partial(made, evaluations={"val": ()}), for_search=True, predicts_new=True)
newless = Objective(made, for_search=True, score=lambda accuracies: accuracies["new"])
sets = lambda *args: dict.fromkeys(("base", "all"), made(*args).evaluations["base"])
more = Objective(
    lambda *args: made(*args, evaluations=sets(*args)), for_search=True, predicts_new=True,
    score=lambda accuracies: accuracies["all"],
)
fewer = Objective(lambda *args: made(*args, train=made(*args).train[1:]), for_search=True)
right = Objective(made, for_search=True)
"""
NAMES = ("ant", "bee", "cat", "dog", "eel")


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_objective.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)


def dataset(**without: str) -> Dataset:
    """Five classes of four images in each split; of one of them none in a split, SPLIT=NAME."""
    splits = {
        split: tuple(
            Item(f"{split}/{name}{k}.jpg", label, name)
            for label, name in enumerate(NAMES)
            for k in range(4)
            if name != without.get(split)
        )
        for split in ("train", "val", "test")
    }
    return Dataset("animals", "Animals", **splits, source=FolderSource("/nowhere"), template="a {}.")


def test_the_number_is_the_functions() -> None:
    assert score_accuracies("own_objective:lower", {"base": 40.0, "new": 30}) == 30.0
    assert score_accuracies("final", {"base": 50.0, "new": 50.0}) == 50.0


@pytest.mark.parametrize(("base", "got"), [(40.0, "nan"), (50.0, "'50'"), (60.0, "inf"), (90.0, "5000000.0")])
def test_anything_else_is_one_line(base: float, got: str) -> None:
    with pytest.raises(UserError, match=f"own_objective:later must return a number up to ±1e6, got {got}.$"):
        score_accuracies("own_objective:later", {"base": base, "new": 30.0})
    with pytest.raises(UserError, match=r"own_objective:later fails: KeyError: 70\.0 \(own_objective\.py, l"):
        score_accuracies("own_objective:later", {"base": 70.0, "new": 30.0})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("blind", r"its FewShotSplit needs an evaluation set, found \[\]"),
        ("baseless", r"its FewShotSplit needs only the evaluation set 'base', found \['val'\]"),
        ("newless", "fails: KeyError: 'new'"),
        ("more", r"its FewShotSplit needs only the evaluation set 'base', found \['all', 'base'\]"),
        ("fewer", r"training images must include every class, with labels 0, 1, 2, \.\.\."),
    ],
)
def test_a_split_that_cannot_be_scored_is_rejected_first(name: str, said: str) -> None:
    with pytest.raises(UserError, match=r"own_objective:nothing must return a number up to ±1e6, got None"):
        objective_of("own_objective:nothing")
    with pytest.raises(UserError, match=f"^own_objective:{name}:? {said}"):
        split_dataset(f"own_objective:{name}", dataset(), shots=1, seed=1)
    assert split_dataset("own_objective:right", dataset(), shots=1, seed=1).evaluations


@pytest.mark.parametrize(
    ("objective", "split", "name"),
    [
        ("final", "test", "eel"),  # the last one: nobody would miss its label
        ("final", "test", "ant"),
        ("all_classes", "test", "eel"),
        ("all_classes", "train", "bee"),
        ("drift", "val", "cat"),
    ],
)
def test_a_class_without_images_is_named(objective: str, split: str, name: str) -> None:
    what = {"train": "training", "val": "validation", "test": "test"}[split]
    expected = f"animals has no {what} images of '{name}'. Every class needs images."
    with pytest.raises(UserError, match=expected):
        split_dataset(objective, dataset(**{split: name}), shots=1, seed=1)


def test_some_classes_need_no_images() -> None:
    found = split_dataset("final", dataset(train="eel"), shots=1, seed=1)
    assert {item.classname for item in found.evaluations["new"]} == {"cat", "dog"}, "only tested: left out"
    assert split_dataset("drift", dataset(val="eel"), shots=1, seed=1).classnames == NAMES[:3]


def test_halves_of_one_class_are_refused() -> None:
    """Among one name all is right: 100 % whatever was learned."""
    whole = dataset()
    few = {split: tuple(i for i in items if i.label < 3) for split, items in whole.splits.items()}
    with pytest.raises(
        UserError, match="animals has 3 classes, but the split into base and new classes needs at least 4"
    ):
        split_dataset("final", replace(whole, **few), shots=1, seed=1)


def test_classes_with_fewer_images_than_shots_are_told() -> None:
    few = dataset()
    few = replace(few, train=few.train[1:])
    assert split_dataset("final", few, shots=3, seed=1).note == ""
    expected = (
        "fewer than data.shots=4 training images, all of which are used, in these classes of animals: ant"
    )
    assert split_dataset("final", few, shots=4, seed=1).note == expected
    assert split_dataset("drift", replace(few, val=()), shots=4, seed=1).note.endswith(
        f"; {expected}, bee, cat"
    )
