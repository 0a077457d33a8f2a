"""The spaces that come with the project serve every method that learns something."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from prometar.config.recipes import NAMES as METHODS
from prometar.config.settings import configure
from prometar.errors import UserError
from tune.options import Options
from tune.space.fitting import fitted, is_used
from tune.space.spaces import Space, known_spaces, load_space
from tune.stages.budget import require_space

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
    path.write_text("optim.lr: {type: float, low: 0.0001, high: 0.1}\n")
    with pytest.raises(UserError, match=r"must hold the reference settings: optim\.lr is 0\.5"):
        require_space(Options(space=str(path), settings={"optim.lr": 0.5}).spec())


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


def test_what_the_meta_phase_alone_moves_is_left_out_without_one() -> None:
    for method, has_one in (("ivlp", False), ("prometar-coop", True)):
        ranges = Options(method=method, space="regularizer").spec().space.ranges
        assert ("optim.gate_schedule" in ranges) == ("optim.gate_lr" in ranges) == has_one


def test_of_choices_that_are_one_to_the_method_one_is_drawn() -> None:
    """ProGrad's distances weigh nothing: it has its own way to keep what CLIP knows."""
    for space in ("regularizer", "recipe"):
        kind = Options(method="prograd", space=space).spec().space.ranges["regularizer.kind"]
        own = configure("prograd").regularizer.kind
        assert own in kind.tried
        assert len(kind.tried) == 2


OUTSIDE = [
    ("modulator.kind", "projection"),
    ("task.augmentation", "input_mixup"),
    ("task.augmentation", "cutmix"),
    ("regularizer.kind", "l2"),
    ("regularizer.kind", "examples.huber:huber"),
    ("regularizer.image_weight", 0),
    ("regularizer.text_weight", 0),
    ("prompts.vision_depth", 0),
    ("prompts.text_depth", 0),
    ("optim.lr", 0.5),
]


@pytest.mark.parametrize(("key", "value"), OUTSIDE)
def test_what_is_set_outside_a_range_is_not_searched_which_is_said(key: str, value: Any) -> None:
    """Whatever docs/methods.md switches off or on, and parts of one's own: a search takes it."""
    spec = Options(settings={key: value}).spec()
    require_space(spec)
    assert key not in spec.space.ranges
    assert spec.space.name.endswith(f" without {key}")


@pytest.mark.parametrize(
    ("kind", "searched"), [("gate", True), ("projection", False), ("constant", False), ("add", False)]
)
def test_rates_of_a_gate_are_searched_where_one_learns(kind: str, searched: bool) -> None:
    config, ranges = configure("prometar", {"modulator.kind": kind}), load_space("full").ranges
    for key in ("optim.gate_lr", "optim.gate_schedule"):
        alone = ranges[key].model_copy(update={"when": {}})
        assert is_used(key, alone, {}, config) == searched
    without = Options(space="full", settings={"modulator.kind": "projection"}).spec().space.ranges
    assert not {"optim.gate_lr", "optim.gate_schedule"} & without.keys()


def test_epochs_that_are_asked_for_count_as_given() -> None:
    assert Options(space="lengths", epochs=1).spec().space.name == "lengths without train.epochs"
    assert Options(space="lengths", epochs=1, method="coop").spec().space.name == (
        "lengths for coop without train.epochs"
    )


CHAIN = """
inner.kind: {type: choice, choices: [none, sgd]}
task.augmentation: {type: choice, choices: [none, feature_mixup], when: {inner.kind: sgd}}
task.mixup_alpha: {type: float, low: 0.1, high: 2.0, when: {task.augmentation: feature_mixup}}
"""
BESIDE = """
regularizer.kind: {type: choice, choices: [none, l1]}
regularizer.text_weight: {type: float, low: 0.5, high: 50, when: {regularizer.kind: [none, l1]}}
"""


@pytest.mark.parametrize(("method", "text"), [("ivlp", CHAIN), ("prometar", CHAIN), ("ivlp", BESIDE)])
def test_a_setting_is_used_where_any_of_its_conditions_lets_it_be(
    method: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text(text)
    require_space(Options(method=method, space=str(tmp_path / "own.yaml")).spec())


def test_the_words_that_a_context_begins_with_are_searched_where_one_is_learned(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "prompts.init: {type: choice, choices: [a photo of a, a bad view of a]}"
    )
    require_space(Options(space=str(tmp_path / "own.yaml")).spec())
    settings = {"prompts.frozen_text": "template"}
    vpt = Options(method="vpt", space=str(tmp_path / "own.yaml"), settings=settings).spec()
    with pytest.raises(UserError, match=r"searches prompts\.init, which vpt does not use"):
        require_space(vpt)


def test_the_method_is_the_study_s(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("method: {type: choice, choices: [prometar, coop]}")
    with pytest.raises(UserError, match="searches method, which the study itself sets"):
        Options(space=str(tmp_path / "own.yaml")).spec()


def test_a_space_of_which_nothing_is_used_is_refused() -> None:
    spec = Options(method="coop", space="regularizer").spec()
    with pytest.raises(UserError, match="the space regularizer has nothing that the method uses"):
        require_space(replace(spec, space=Space("regularizer", {})))


def test_where_nothing_is_trained_nothing_is_searched() -> None:
    with pytest.raises(UserError, match="zero-shot trains nothing, so there is nothing to search"):
        require_space(Options(method="zero-shot").spec())
