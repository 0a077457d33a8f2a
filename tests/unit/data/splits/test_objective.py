"""An objective of one's own makes one finite number of accuracies, whenever it is asked."""

from dataclasses import replace
from pathlib import Path

import pytest

from prometar.data.datasets.dataset import Dataset, Item
from prometar.data.datasets.sources import FolderSource
from prometar.data.splits.objective import figure_of, objective_of, problem
from prometar.errors import UserError

MINE = """
import math
from dataclasses import replace
from functools import partial

from prometar.data.splits.objective import Objective, problem

def lower(accuracies):
    return min(accuracies.values())

def later(accuracies):  # as expected when it is tried, and not afterwards
    return {80.0: 1.0, 40.0: math.nan, 50.0: "50", 60.0: math.inf}[accuracies["base"]]

def nothing(accuracies):
    return None

def made(dataset, shots, seed, per_class, **changes):
    return replace(problem("base_val", dataset, shots=shots, seed=seed), **changes)

ends = Objective(partial(made, every_epoch=False), searches=True)
blind = Objective(partial(made, evaluations={}), searches=True)
baseless = Objective(partial(made, evaluations={"val": ()}, predicts_new=True), searches=True)
newless = Objective(made, searches=True, figure=lambda accuracies: accuracies["new"])
right = Objective(made, searches=True)
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_objective.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)


def test_the_number_is_the_functions() -> None:
    assert figure_of("own_objective:lower", {"base": 40.0, "new": 30}) == 30.0
    assert figure_of("final", {"base": 50.0, "new": 50.0}) == 50.0


@pytest.mark.parametrize(("base", "found"), [(40.0, "nan"), (50.0, "'50'"), (60.0, "inf")])
def test_anything_else_is_one_line(base: float, found: str) -> None:
    message = f"own_objective:later must make one finite number of accuracies, found {found}$"
    with pytest.raises(UserError, match=message):
        figure_of("own_objective:later", {"base": base, "new": 30.0})


def test_it_is_tried_before_anything_runs() -> None:
    with pytest.raises(UserError, match=r"own_objective:nothing must make one finite number .*, found None"):
        objective_of("own_objective:nothing")


def test_its_errors_are_told_with_their_place() -> None:
    with pytest.raises(
        UserError, match=r"own_objective:later fails: KeyError: 70\.0 \(own_objective\.py, line 12\)"
    ):
        figure_of("own_objective:later", {"base": 70.0, "new": 30.0})


NAMES = ("ant", "bee", "cat", "dog", "eel")


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


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ends", "a search asks for a score in every epoch: its Problem needs every_epoch=True"),
        ("blind", r"its Problem needs evaluations, found \[\]"),
        ("baseless", r"its Problem needs 'base' among its evaluations, found \['val'\]"),
        ("newless", "fails: KeyError: 'new'"),
    ],
)
def test_what_no_trial_could_be_scored_with_is_told_first(name: str, said: str) -> None:
    with pytest.raises(UserError, match=f"^own_objective:{name}:? {said}"):
        problem(f"own_objective:{name}", dataset(), shots=1, seed=1)
    assert problem("own_objective:right", dataset(), shots=1, seed=1).every_epoch


@pytest.mark.parametrize(
    ("objective", "split", "name"),
    [
        ("final", "test", "eel"),  # the last one: nobody would miss its label
        ("final", "test", "ant"),
        ("all_classes", "test", "eel"),
        ("all_classes", "train", "bee"),
        ("drift", "val", "cat"),
        ("base_val", "val", "ant"),
    ],
)
def test_a_class_without_images_is_named(objective: str, split: str, name: str) -> None:
    what = {"train": "training", "val": "validation", "test": "test"}[split]
    with pytest.raises(UserError, match=f"animals has no {what} images of '{name}': every class needs some"):
        problem(objective, dataset(**{split: name}), shots=1, seed=1)


def test_classes_that_are_only_tested_are_left_out() -> None:
    found = problem("final", dataset(train="eel"), shots=1, seed=1)
    assert {item.classname for item in found.evaluations["new"]} == {"cat", "dog"}


def test_new_classes_need_no_validation_images() -> None:
    found = problem("drift", dataset(val="eel"), shots=1, seed=1)
    assert found.classnames == NAMES[:3]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_halves_of_one_class_are_refused(number: int) -> None:
    """Among one name all is right: 100 % whatever was learned."""
    whole = dataset()
    few = replace(whole, **{
        split: tuple(item for item in whole.splits[split] if item.label < number) for split in whole.splits
    })  # fmt: skip
    with pytest.raises(UserError, match=f"animals has too few classes, {number}: base and new ones are two"):
        problem("final", few, shots=1, seed=1)
