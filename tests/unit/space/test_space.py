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
"""SHA-256 of the described spaces of older methods."""
NESTED = """
modulator.kind: {type: choice, choices: [gate, add]}
regularizer.kind: {type: choice, choices: [l1, none]}
regularizer.text_weight: {type: float, low: 1.0, high: 100.0, when: {regularizer.kind: l1}}
inner.order: {type: choice, choices: [first, second], when: {regularizer.kind: [l1], modulator.kind: gate}}
"""


@pytest.mark.parametrize("name", built_in_spaces())
def test_every_space_contains_the_default_values_of_all_settings_that_are_active(name: str) -> None:
    space = load_space(name)
    # The spaces of methods also contain settings of a meta phase, which some of these methods lack.
    config = configure(name, {"inner.kind": "sgd"}) if name in METHODS else Config()

    values = space.default_values(config)

    assert values.keys() == {key for key, entry in space.ranges.items() if entry.is_active(values)}
    assert space.restrict(config) == space


def test_an_unknown_space_is_refused() -> None:
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
def test_an_invalid_space_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        space_from(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


ALL_ACTIVE = {
    "modulator.kind": "gate",
    "regularizer.kind": "l1",
    "regularizer.text_weight": 5.0,
    "inner.order": "first",
}
"""Settings of `NESTED` for which all conditions hold."""


@pytest.mark.parametrize(
    ("change", "dropped"),
    [
        ({}, set()),
        ({"modulator.kind": "add"}, {"inner.order"}),
        ({"regularizer.kind": "none"}, {"inner.order", "regularizer.text_weight"}),
    ],
    ids=["all-hold", "one-fails", "two-fail"],
)
def test_settings_whose_condition_fails_are_dropped(change: dict[str, str], dropped: set[str]) -> None:
    given = {**ALL_ACTIVE, **change}
    checked = space_from(NESTED).check(given, where="a test")
    assert checked == {key: value for key, value in given.items() if key not in dropped}


def test_a_setting_is_kept_if_its_condition_may_hold_after_sampling() -> None:
    without_kind = {"regularizer.text_weight": 5.0}
    assert space_from(NESTED).check(without_kind, where="a test") == without_kind


def test_a_space_describes_conditions() -> None:
    text = space_from(NESTED).describe()["inner.order"]
    assert text == "first | second if regularizer.kind = l1 and modulator.kind = gate"


def test_combinations_of_a_finite_space_are_distinct_and_valid() -> None:
    finite = space_from("""
regularizer.kind: {type: choice, choices: [l1, none]}
data.shots: {type: int, low: 1, high: 3}
inner.order: {type: choice, choices: [first, second], when: {regularizer.kind: l1}}
""")
    combinations = finite.combinations()
    assert combinations is not None
    num_with_l1 = 3 * 2  # three numbers of shots, two orders
    num_without = 3
    assert len(combinations) == num_with_l1 + num_without
    assert len({repr(settings) for settings in combinations}) == len(combinations)
    for settings in combinations:
        assert finite.check(settings, where="a test") == settings


def test_a_space_with_a_float_or_too_many_integers_has_no_list_of_combinations() -> None:
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
    # CoOp's 200 epochs lie outside the range.
    "coop": {"prompts.vision_depth", "regularizer.image_weight", "task.augmentation", EPOCHS_KEY},
    "vpt": {"prompts.text_depth", "regularizer.text_weight", "task.augmentation"},
    "maple": {"prompts.vision_depth", "task.augmentation"},
    "prometar-maple": {"prompts.vision_depth"},
}
"""Settings of the default space that have no effect in a method, or whose range excludes its defaults."""


@pytest.mark.parametrize("method", REMOVED)
def test_settings_that_a_method_lacks_are_left_out(method: str) -> None:
    whole = load_space("default")
    restricted = whole.restrict(configure(method))
    assert whole.ranges.keys() - restricted.ranges.keys() == REMOVED[method]
    assert list(restricted.ranges) == [key for key in whole.ranges if key in restricted.ranges], "same order"
    assert restricted.default_values(configure(method))


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
    restricted = whole.restrict(config)
    assert whole.ranges.keys() - restricted.ranges.keys() == removed
    assert restricted.default_values(config)


@pytest.mark.parametrize(("method", "space"), [("mmrl", "mmrl"), ("coop", "default")])
def test_a_study_searches_the_own_space_of_its_method_or_else_the_default_space(
    method: str, space: str
) -> None:
    assert space_of_method(method) == space
    assert StudyConfig.of(dataset="dtd", method=method).search.space.name == space


def test_a_study_searches_the_space_that_the_user_gives() -> None:
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


def test_the_spaces_of_older_methods_have_not_changed_so_that_their_studies_resume() -> None:
    """The digest was recorded before methods had spaces of their own."""
    methods = [method for method in METHODS if space_of_method(method) == "default"]
    trained = [method for method in methods if not method.startswith("zero-shot")]
    spaces = ("default", "regularizer", "augmentation")
    texts: list[list[tuple[str, str]]] = []
    for method, space in product(trained, spaces):
        restricted = load_space(space).restrict(configure(method))
        texts.append(list(restricted.describe().items()))

    assert len(trained) == 13
    assert sha256(json.dumps(texts).encode()).hexdigest() == DIGEST


def test_searched_settings_are_shared_with_other_methods_or_own() -> None:
    of_mma = searched_settings(configure("mma"))
    assert of_mma.own == ("adapters.layers", "adapters.dim", "adapters.scale", "adapters.shared")
    assert set(of_mma.shared) >= {"optim.lr", "train.epochs", "regularizer.kind", "augment.flip"}

    of_promptsrc = searched_settings(configure("promptsrc"))
    assert not of_promptsrc.own


def test_a_range_is_left_out_if_the_method_learns_nothing_with_one_of_its_values() -> None:
    """Without adapters, MMA learns nothing. CoOp still learns its prompts."""
    whole = load_space("full")
    assert "adapters.kind" not in whole.restrict(configure("mma")).ranges
    assert "adapters.kind" in whole.restrict(configure("coop")).ranges


def test_the_factor_of_an_lr_is_searched_only_for_components_that_learn() -> None:
    for method, learns in (("dept-maple", True), ("maple", False), ("mmrl", False)):
        ranges = load_space("dept-maple").restrict(configure(method)).ranges
        assert ("optim.logits_lr_factor" in ranges) == learns


SPACE = space_from(
    "optim.lr: {type: float, low: 0.001, high: 1.0, log: true}\n"
    "regularizer.kind: {type: choice, choices: [l1, none]}\n"
    "regularizer.text_weight: {type: float, low: 1.0, high: 100.0, when: {regularizer.kind: l1}}"
)
BEST = {"optim.lr": 0.02, "regularizer.kind": "l1", "regularizer.text_weight": 7.0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optim.lr: 0.01", [{"optim.lr": 0.01}]),
        ("optim.lr: 1e-2", [{"optim.lr": 0.01}]),
        ("optim: {lr: 0.01}\nregularizer: {kind: none}", [{"optim.lr": 0.01, "regularizer.kind": "none"}]),
        ("- optim.lr: 0.01\n- optim.lr: 0.1", [{"optim.lr": 0.01}, {"optim.lr": 0.1}]),
        (dump_config(Config().override(BEST)), [BEST]),
    ],
    ids=["dotted", "exponent", "nested", "list", "complete-configuration"],
)
def test_enqueued_settings_are_read_from_mappings_lists_and_complete_configurations(
    tmp_path: Path, text: str, expected: list[dict[str, Any]]
) -> None:
    (tmp_path / "start.yaml").write_text(text)
    assert load_enqueued(tmp_path / "start.yaml", SPACE) == expected


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
def test_invalid_enqueued_settings_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "start.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_enqueued(tmp_path / "start.yaml", SPACE)


def test_a_missing_file_of_enqueued_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--enqueue .*nowhere.yaml does not exist"):
        load_enqueued(tmp_path / "nowhere.yaml", SPACE)
