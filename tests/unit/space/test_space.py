"""Search spaces and enqueued settings."""

import json
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from prometar.config.recipes import METHODS
from prometar.config.settings import Config, configure, dump_config
from prometar.errors import UserError
from tests.support.databases import space_from
from tune.config import StudyConfig
from tune.space.space import (
    EPOCHS_KEY,
    built_in_spaces,
    load_enqueued,
    load_space,
    searched_settings,
    space_of_method,
)

DIGEST = "591d4ad09ec4d6bb0c13267e90e0f38b37b4ce711ba5bb25d6e90b8372fae7ad"
NESTED = """
modulator.kind: {type: choice, choices: [gate, add]}
regularizer.kind: {type: choice, choices: [l1, none]}
regularizer.text_weight: {type: float, low: 1.0, high: 100.0, when: {regularizer.kind: l1}}
inner.order: {type: choice, choices: [first, second], when: {regularizer.kind: [l1], modulator.kind: gate}}
"""


@pytest.mark.parametrize("name", built_in_spaces())
def test_every_space_contains_the_default_settings(name: str) -> None:
    """Except settings whose condition does not hold for the defaults."""
    space = load_space(name)
    config = configure(name, {"inner.kind": "sgd"}) if name in METHODS else Config()
    values = space.default_values(config)
    assert values.keys() == {key for key, entry in space.ranges.items() if entry.is_active(values)}
    assert space.restrict(config) == space


def test_unknown_spaces_are_refused() -> None:
    with pytest.raises(UserError, match=r"--space huge does not exist. Use augmentation, coprompt, def"):
        load_space("huge")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not valid YAML"),
        ("[]", "must map settings to ranges"),
        ("optim.lr: {type: float, low: 1, high: 0}", "low 1 must be below high 0"),
        ("optim.lr: {type: float, low: 0, high: 1, log: true}", "above 0 with log"),
        ("train.epochs: {type: int, low: 1, high: 2.5}", "low and high must be integers, got 1 and 2.5"),
        ("optim.lr: {type: float, low: 0, high: 1, step: 2}", "step: unknown key"),
        ("optim.lr: {type: float, low: false, high: 1}", "low: false is not a number"),
        ("optim.lr: {type: float, low: 0, high: 1, log: 1}", "log must be a valid boolean"),
        ("optim.lr: {type: real}", "optim.lr.type must be one of 'float', "),
        ("a: {choices: [x]}", "a: Unable to extract tag using discriminator 'type'"),
        ("a: 0.5", "Example of a range: optim.lr: {type: float"),
        ("a: {type: choice, choices: [x, x]}", "values must be distinct, got x x"),
        (
            NESTED.replace("modulator.kind: {", "optim.x: {"),
            "condition refers to 'modulator.kind', which must be listed above",
        ),
        (
            "a: {type: choice, choices: [x]}\nb: {type: int, low: 1, high: 2, when: {a: y}}",
            "b: the values for a in its condition must lie in x",
        ),
        (
            "a: {type: int, low: 1, high: 2}\nb: {type: int, low: 1, high: 2, when: {a: []}}",
            "b: the values for a in its condition must lie in 1 .. 2",
        ),
    ],
)
def test_a_wrong_space_is_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        space_from(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_setting_is_dropped_unless_its_condition_holds() -> None:
    space = space_from(NESTED)
    given = {"modulator.kind": "gate", "regularizer.text_weight": 5.0, "inner.order": "first"}
    assert space.check({**given, "regularizer.kind": "none"}, where="x") == {
        "modulator.kind": "gate",
        "regularizer.kind": "none",
    }
    both = {**given, "regularizer.kind": "l1"}
    assert space.check(both, where="x") == both
    assert set(space.check({**both, "modulator.kind": "add"}, where="x")) == {*both} - {"inner.order"}
    without_kind = {"regularizer.text_weight": 5.0}
    assert space.check(without_kind, where="x") == without_kind, "the condition may hold after sampling"
    assert space.describe()["inner.order"] == (
        "first | second if regularizer.kind = l1 and modulator.kind = gate"
    )


def test_combinations_of_a_finite_space_are_distinct_and_valid() -> None:
    finite = space_from("""
regularizer.kind: {type: choice, choices: [l1, none]}
data.shots: {type: int, low: 1, high: 3}
inner.order: {type: choice, choices: [first, second], when: {regularizer.kind: l1}}
""")
    found = finite.combinations()
    assert found is not None
    assert len({repr(each) for each in found}) == len(found) == 2 * 3 + 3
    assert all(finite.check(each, where="x") == each for each in found)
    assert space_from(NESTED).combinations() is None
    assert space_from("data.shots: {type: int, low: 1, high: 3000}").combinations() is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.lr: {type: float, low: 0.1, high: 1}", r"optim.lr = 0.0025 lies outside the range 0.1 .. 1 "),
        ("optim.rate: {type: float, low: 0.1, high: 1.0}", r"searches optim.rate, which is not a setting"),
    ],
)
def test_defaults_outside_a_space_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        space_from(text).default_values(Config())


REMOVED = {
    "coop": {"prompts.vision_depth", "regularizer.image_weight", "task.augmentation", EPOCHS_KEY},
    "vpt": {"prompts.text_depth", "regularizer.text_weight", "task.augmentation"},
    "maple": {"prompts.vision_depth", "task.augmentation"},
    "prometar-maple": {"prompts.vision_depth"},
}


@pytest.mark.parametrize("method", REMOVED)
def test_settings_that_a_method_lacks_are_left_out(method: str) -> None:
    """CoOp's 200 epochs lie outside the range."""
    whole = load_space("default")
    found = load_space("default").restrict(configure(method))
    assert whole.ranges.keys() - found.ranges.keys() == REMOVED[method]
    assert list(found.ranges) == [key for key in whole.ranges if key in found.ranges]
    assert found.default_values(configure(method))


def test_settings_of_the_meta_phase_are_left_out_without_one() -> None:
    for method, has_one in (("ivlp", False), ("prometar-coop", True)):
        ranges = load_space("regularizer").restrict(configure(method)).ranges
        for key in ("optim.gate_schedule", "optim.gate_lr", "inner.lr"):
            assert (key in ranges) == has_one


@pytest.mark.parametrize(
    ("key", "value", "removed"),
    [
        ("modulator.kind", "projection", {"modulator.kind", "optim.gate_schedule", "optim.gate_lr"}),
        ("task.augmentation", "cutmix", {"task.augmentation", "task.mixup_alpha", "task.mixup_beta"}),
        ("regularizer.image_weight", 0, {"regularizer.image_weight"}),
        ("regularizer.text_weight", 300, {"regularizer.text_weight"}),
        ("augment.crop_scale_max", 0.8, {"augment.crop_scale_min"}),
    ],
)
def test_settings_whose_default_lies_outside_are_left_out(key: str, value: Any, removed: set[str]) -> None:
    config = configure("prometar", {key: value})
    whole = load_space("full")
    found = whole.restrict(config)
    assert whole.ranges.keys() - found.ranges.keys() == removed
    assert found.default_values(config)


def test_a_study_searches_the_own_space_of_its_method_unless_another_is_given() -> None:
    for method, name in (("mmrl", "mmrl"), ("coop", "default")):
        assert (
            StudyConfig.of(dataset="dtd", method=method).search.space.name == name == space_of_method(method)
        )
    assert StudyConfig.of(dataset="dtd", method="mmrl", space="default").search.space.name == "default"


def test_a_recipe_file_names_the_space_of_its_studies(tmp_path: Path) -> None:
    path = tmp_path / "meta.yaml"
    settings = "settings: {prompts: {kind: none}, adapters: {kind: parallel}}\n"
    path.write_text(settings)
    assert space_of_method(str(path)) == "default"
    path.write_text(f"space: mma\n{settings}")
    searched = StudyConfig.of(dataset="dtd", method=str(path)).search.space
    assert searched.name == "mma"
    assert {"adapters.dim", "inner.lr"} <= searched.ranges.keys()


def test_the_space_of_older_methods_has_not_changed() -> None:
    """So their studies resume. The digest was recorded before methods had spaces of their own."""
    methods = [method for method in METHODS if space_of_method(method) == "default"]
    trained = [method for method in methods if not method.startswith("zero-shot")]
    spaces = ("default", "regularizer", "augmentation")
    texts = [
        list(load_space(space).restrict(configure(method)).describe().items())
        for method, space in product(trained, spaces)
    ]
    assert len(trained) == 13
    assert sha256(json.dumps(texts).encode()).hexdigest() == DIGEST


def test_searched_settings_are_shared_with_other_methods_or_own() -> None:
    found = searched_settings(configure("mma"))
    assert found.own == ("adapters.layers", "adapters.dim", "adapters.scale", "adapters.shared")
    assert set(found.shared) >= {"optim.lr", "train.epochs", "regularizer.kind", "augment.flip"}
    assert not searched_settings(configure("promptsrc")).own


def test_a_range_with_which_nothing_is_learned_is_left_out() -> None:
    """Without adapters, MMA learns nothing."""
    assert "adapters.kind" not in load_space("full").restrict(configure("mma")).ranges
    assert "adapters.kind" in load_space("full").restrict(configure("coop")).ranges


def test_the_factor_of_an_lr_is_searched_only_for_components_that_learn() -> None:
    for method, learns in (("dept-maple", True), ("maple", False), ("mmrl", False)):
        ranges = load_space("dept-maple").restrict(configure(method)).ranges
        assert ("optim.logits_lr_factor" in ranges) == learns


START = space_from(
    "optim.lr: {type: float, low: 0.001, high: 1.0, log: true}\n"
    "regularizer.kind: {type: choice, choices: [l1, none]}\n"
    "regularizer.text_weight: {type: float, low: 1.0, high: 100.0, when: {regularizer.kind: l1}}"
)
BEST = {"optim.lr": 0.02, "regularizer.kind": "l1", "regularizer.text_weight": 7.0}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("optim.lr: 0.01", [{"optim.lr": 0.01}]),
        ("optim.lr: 1e-2", [{"optim.lr": 0.01}]),
        ("optim: {lr: 0.01}\nregularizer: {kind: none}", [{"optim.lr": 0.01, "regularizer.kind": "none"}]),
        ("- optim.lr: 0.01\n- optim.lr: 0.1", [{"optim.lr": 0.01}, {"optim.lr": 0.1}]),
        (dump_config(Config().override(BEST)), [BEST]),
    ],
    ids=range(5),
)
def test_enqueued_settings_are_read_from_lists_and_recipes(
    tmp_path: Path, text: str, found: list[dict[str, Any]]
) -> None:
    (tmp_path / "start.yaml").write_text(text)
    assert load_enqueued(tmp_path / "start.yaml", START) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.lr: 5", "start.yaml, entry 1: optim.lr = 5 lies outside the range 0.001 .. 1"),
        ("optim.lr: true", "optim.lr = True lies outside"),
        ("- optim.lr: 0.1\n- optim.momentum: 0.5", "entry 2: optim.momentum is not in the space"),
        ("optim: {momentum: 0.5}\nmethod: coop\ndata: {name: dtd}", "contains no setting of the space mine"),
        ("regularizer.text_weight: 5", "regularizer.text_weight requires regularizer.kind, which is missing"),
        ("[]", "must contain a mapping of settings to values"),
        ("just words", "must contain a mapping of settings to values"),
    ],
)
def test_wrong_enqueued_settings_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "start.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_enqueued(tmp_path / "start.yaml", START)
    with pytest.raises(UserError, match=r"--enqueue .*nowhere.yaml does not exist"):
        load_enqueued(tmp_path / "nowhere.yaml", START)
