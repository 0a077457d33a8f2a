"""The spaces that come with the project serve every method that learns something."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from prometar.config.settings import configure
from prometar.errors import UserError
from prometar.methods.composition import METHODS
from tune.options import Options
from tune.space.fitting import fitted
from tune.space.spaces import Space, known_spaces, load_space
from tune.stages.searched import require_space

LEARNING = [method for method in METHODS if not method.startswith("zero-shot")]


@pytest.mark.parametrize(("method", "space"), list(product(LEARNING, known_spaces())))
def test_every_method_can_be_searched_in_every_space(method: str, space: str) -> None:
    spec = Options(method=method, space=space).spec()
    require_space(spec)
    whole = load_space(space).ranges
    assert spec.space.ranges
    assert list(spec.space.ranges) == [key for key in whole if key in spec.space.ranges]
    assert spec.space.name == (space if len(spec.space.ranges) == len(whole) else f"{space} for {method}")


def test_prometar_searches_all_of_them() -> None:
    for name in known_spaces():
        assert Options(space=name).spec().space.describe() == load_space(name).describe()


def test_what_a_method_lacks_is_left_out() -> None:
    whole = load_space("recipe").ranges.keys()
    coop = whole - Options(method="coop").spec().space.ranges.keys()
    image = {"prompts.vision_depth", "regularizer.image_weight"}
    assert coop == image | {"inner.lr", "inner.outer_weight", "task.augmentation"}
    maple = whole - Options(method="prometar-maple").spec().space.ranges.keys()
    assert maple == {"prompts.vision_depth"}


CONDITIONAL = {
    "inner.order": {"type": "choice", "choices": ["first", "second"]},
    "inner.lr": {"type": "float", "low": 1e-4, "high": 1e-1, "when": {"inner.order": "second"}},
    "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-1, "when": {"inner.order": "second"}},
    "augment.flip": {"type": "float", "low": 0.0, "high": 0.9, "when": {"inner.order": "first"}},
}


def test_what_stood_beside_a_setting_that_is_left_out() -> None:
    found = fitted(Space.of(CONDITIONAL), configure("coop"), ())  # whose order, of no matter, is "second"
    assert list(found.ranges) == ["optim.lr"]
    assert not found.ranges["optim.lr"].when


def test_own_spaces_and_own_settings_are_taken_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("inner.lr: {type: float, low: 0.0001, high: 0.1}\n")
    with pytest.raises(UserError, match=r"searches inner\.lr, which coop does not use"):
        require_space(Options(method="coop", space=str(path)).spec())
    with pytest.raises(UserError, match=r"must hold the reference settings: optim\.lr is 0\.5"):
        require_space(Options(method="coop", settings={"optim.lr": 0.5}).spec())


def test_a_setting_that_is_given_counts() -> None:
    every = list(load_space("recipe").ranges)
    assert list(Options(method="promptsrc", settings={"inner.kind": "sgd"}).spec().space.ranges) == every
    without = Options(settings={"inner.kind": "none"}).spec().space
    assert set(every) - set(without.ranges) == {"inner.lr", "inner.outer_weight", "task.augmentation"}
    lengths = {"method": "coop", "space": "lengths", "dataset": "dtd"}
    assert "train.epochs" not in Options(**lengths).spec().space.ranges  # 200, and 3 to 15 are searched
    assert "train.epochs" in Options(**lengths, epochs=10).spec().space.ranges
    assert "train.epochs" in Options(**lengths, settings={"train.epochs": 10}).spec().space.ranges


USELESS = [
    ("coop", "lengths", "prompts.vision_length"),
    ("coop", "recipe", "regularizer.image_weight"),
    ("vpt", "lengths", "prompts.text_length"),
    ("vpt", "recipe", "regularizer.text_weight"),
]


@pytest.mark.parametrize(("method", "space", "setting"), USELESS)
def test_what_has_no_effect_is_left_out(method: str, space: str, setting: str) -> None:
    assert setting not in Options(method=method, space=space).spec().space.ranges


def test_a_space_of_which_nothing_is_used_is_refused() -> None:
    spec = Options(method="coop", space="regularizer").spec()
    with pytest.raises(UserError, match="the space regularizer has nothing that the method uses"):
        require_space(replace(spec, space=Space("regularizer", {})))


def test_where_nothing_is_trained_nothing_is_searched() -> None:
    with pytest.raises(UserError, match="zero-shot trains nothing, so there is nothing to search"):
        require_space(Options(method="zero-shot").spec())
