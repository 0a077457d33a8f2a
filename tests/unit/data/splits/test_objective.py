"""Objectives: their images and scores, custom objectives, and classes without images."""

from dataclasses import replace
from pathlib import Path

import pytest

from prometar.data.datasets.dataset import SPLITS, Dataset, FolderSource, Item, Items
from prometar.data.splits.objective import objective_of, score_accuracies, split_dataset
from prometar.errors import UserError

OWN_OBJECTIVES = """
import math
from dataclasses import replace

from prometar.data.splits.objective import Objective, split_dataset


def lower(accuracies):
    return min(accuracies.values())


def sometimes_invalid(accuracies):
    results = {80.0: 1.0, 40.0: math.nan, 50.0: "50", 60.0: math.inf, 90.0: 5e6}
    return results[accuracies["base"]]


def nothing(accuracies):
    return None


def score_new(accuracies):
    return accuracies["new"]


def score_all(accuracies):
    return accuracies["all"]


def base_split(dataset, shots, seed, val_per_class):
    return split_dataset("base_val", dataset, shots=shots, seed=seed)


def no_sets(*args):
    return replace(base_split(*args), evaluations={})


def another_set(*args):
    return replace(base_split(*args), evaluations={"val": ()})


def too_many_sets(*args):
    split = base_split(*args)
    images = split.evaluations["base"]
    return replace(split, evaluations={"base": images, "all": images})


def without_first_image(*args):
    split = base_split(*args)
    return replace(split, train=split.train[1:])


valid = Objective(base_split, for_search=True)
without_sets = Objective(no_sets, for_search=True)
without_base = Objective(another_set, for_search=True, predicts_new=True)
with_third_set = Objective(too_many_sets, for_search=True, predicts_new=True, score=score_all)
scores_missing_set = Objective(base_split, for_search=True, score=score_new)
without_first_class = Objective(without_first_image, for_search=True)
"""
NAMES = ("ant", "bee", "cat", "dog", "eel")


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_objective.py").write_text(OWN_OBJECTIVES)
    monkeypatch.syspath_prepend(tmp_path)


def make_dataset(**missing: str) -> Dataset:
    """Return a dataset of five classes with four images in each split.

    Args:
        missing: For a split, the class that has no images in it, such as test="eel".
    """
    splits: dict[str, Items] = {}
    for split in SPLITS:
        items: list[Item] = []
        for label, name in enumerate(NAMES):
            if name != missing.get(split):
                items += [Item(f"{split}/{name}{k}.jpg", label, name) for k in range(4)]
        splits[split] = tuple(items)
    return Dataset("animals", "Animals", **splits, source=FolderSource("/nowhere"), template="a {}.")


def test_the_score_of_the_final_objective_is_the_harmonic_mean() -> None:
    assert score_accuracies("final", {"base": 50.0, "new": 50.0}) == 50.0


def test_a_custom_function_replaces_the_score() -> None:
    assert score_accuracies("own_objective:lower", {"base": 40.0, "new": 30}) == 30.0


@pytest.mark.parametrize(
    ("base", "score"), [(40.0, "nan"), (50.0, "'50'"), (60.0, "inf"), (90.0, "5000000.0")]
)
def test_a_score_that_is_not_a_number_up_to_a_million_is_refused(base: float, score: str) -> None:
    expected = f"own_objective:sometimes_invalid must return a number up to ±1e6, got {score}.$"
    with pytest.raises(UserError, match=expected):
        score_accuracies("own_objective:sometimes_invalid", {"base": base, "new": 30.0})


def test_an_error_of_a_custom_score_names_its_file_and_line() -> None:
    expected = r"own_objective:sometimes_invalid fails: KeyError: 70\.0 \(own_objective\.py, line \d+\)"
    with pytest.raises(UserError, match=expected):
        score_accuracies("own_objective:sometimes_invalid", {"base": 70.0, "new": 30.0})


def test_a_function_that_returns_no_number_is_refused_when_it_is_loaded() -> None:
    with pytest.raises(UserError, match=r"own_objective:nothing must return a number up to ±1e6, got None"):
        objective_of("own_objective:nothing")


def test_a_valid_custom_objective_is_accepted() -> None:
    split = split_dataset("own_objective:valid", make_dataset(), shots=1, seed=1)
    assert split.evaluations.keys() == {"base"}


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("without_sets", r"its FewShotSplit needs an evaluation set, found \[\]"),
        ("without_base", r"its FewShotSplit needs only the evaluation set 'base', found \['val'\]"),
        ("with_third_set", r"its FewShotSplit needs only the evaluation set 'base', found \['all', 'base'\]"),
        ("scores_missing_set", "fails: KeyError: 'new'"),
        ("without_first_class", r"training images must include every class, with labels 0, 1, 2, \.\.\."),
    ],
)
def test_a_custom_split_that_cannot_be_scored_is_refused(name: str, problem: str) -> None:
    with pytest.raises(UserError, match=f"^own_objective:{name}:? {problem}"):
        split_dataset(f"own_objective:{name}", make_dataset(), shots=1, seed=1)


@pytest.mark.parametrize(
    ("objective", "split", "usage", "name"),
    [
        ("final", "test", "test", "eel"),  # without the last class, no other label would change
        ("final", "test", "test", "ant"),
        ("all_classes", "test", "test", "eel"),
        ("all_classes", "train", "training", "bee"),
        ("drift", "val", "validation", "cat"),
    ],
)
def test_a_class_without_images_is_named(objective: str, split: str, usage: str, name: str) -> None:
    dataset = make_dataset(**{split: name})
    expected = f"animals has no {usage} images of '{name}'. Every class needs images."
    with pytest.raises(UserError, match=expected):
        split_dataset(objective, dataset, shots=1, seed=1)


def test_a_class_without_training_images_is_not_tested() -> None:
    split = split_dataset("final", make_dataset(train="eel"), shots=1, seed=1)
    assert {item.classname for item in split.evaluations["new"]} == {"cat", "dog"}


def test_a_search_needs_no_validation_images_of_new_classes() -> None:
    split = split_dataset("drift", make_dataset(val="eel"), shots=1, seed=1)
    assert split.classnames == ("ant", "bee", "cat")


def test_a_dataset_with_a_single_new_class_is_refused() -> None:
    """Accuracy on a single class is always 100%."""
    dataset = make_dataset()
    splits: dict[str, Items] = {}
    for split, items in dataset.splits.items():
        splits[split] = tuple(item for item in items if item.classname in ("ant", "bee", "cat"))
    expected = "animals has 3 classes, but the split into base and new classes needs at least 4"
    with pytest.raises(UserError, match=expected):
        split_dataset("final", replace(dataset, **splits), shots=1, seed=1)


@pytest.fixture
def short_of_ants() -> Dataset:
    """Dataset with three training images of ants, and four of each other class."""
    dataset = make_dataset()
    return replace(dataset, train=dataset.train[1:])


FEW_IMAGES = "fewer than data.shots=4 training images, all of which are used, in these classes of animals: "


def test_the_note_names_classes_with_fewer_images_than_shots(short_of_ants: Dataset) -> None:
    assert split_dataset("final", short_of_ants, shots=3, seed=1).note == ""
    assert split_dataset("final", short_of_ants, shots=4, seed=1).note == f"{FEW_IMAGES}ant"


def test_the_note_takes_held_out_images_into_account(short_of_ants: Dataset) -> None:
    without_val = replace(short_of_ants, val=())
    note = split_dataset("drift", without_val, shots=4, seed=1).note
    assert note.endswith(f"; {FEW_IMAGES}ant, bee, cat")
