"""A recipe and given settings become a complete tree before anything is validated."""

import pytest

from prometar.config.recipes import METHODS, recipe
from prometar.config.resolve import complete, overridden, resolve
from prometar.config.sections import SECTIONS, kind_field
from prometar.config.settings import Config
from prometar.errors import UserError
from prometar.methods.composition import KINDS


@pytest.mark.parametrize("method", METHODS)
def test_a_resolved_tree_selects_a_kind_in_every_section(method: str) -> None:
    tree = resolve({"method": method})
    assert tree.keys() == {"method", *SECTIONS}
    for section, kinds in KINDS.items():
        assert tree[section][kinds.field] in kinds.built_in


@pytest.mark.parametrize("method", METHODS)
def test_resolving_a_resolved_tree_changes_nothing(method: str) -> None:
    tree = resolve({"method": method})
    assert resolve(tree) == tree
    assert Config(**tree) == Config(method=method)


def test_given_settings_win_over_the_recipe_which_wins_over_the_default_kinds() -> None:
    tree = resolve({"method": "mmrl", "optim": {"lr": 5}, "prompts": {"dim": 64}})
    assert tree["optim"] == {"kind": "adamw", "lr": 5}
    assert tree["prompts"] == {"kind": "shared", "length": 5, "dim": 64, "layers": "6-12"}
    assert tree["averager"] == {"kind": "last"}


def test_another_kind_drops_the_settings_that_it_lacks() -> None:
    tree = resolve({"method": "mmrl", "prompts": {"kind": "coupled", "text_depth": 3}})
    assert tree["prompts"] == {"kind": "coupled", "text_depth": 3}

    changed = overridden(tree, {"prompts.kind": "none", "prompts.text_depth": 4})
    assert changed["prompts"] == {"kind": "none"}
    assert changed["optim"] == tree["optim"]


def test_values_are_not_validated_by_the_resolver() -> None:
    tree = resolve({"optim": {"lr": "fast"}, "unknown": 3})
    assert tree["optim"]["lr"] == "fast"
    assert tree["unknown"] == 3

    tree = complete({}, {"data": 3})
    assert tree["data"] == 3


def test_arguments_of_a_custom_component_are_kept_until_its_kind_changes() -> None:
    tree = overridden(resolve({}), {"modulator.kind": "mine:First", "modulator.args.a": 1})

    same_kind = overridden(tree, {"modulator.args.b": 2})
    assert same_kind["modulator"]["args"] == {"a": 1, "b": 2}

    other_kind = overridden(tree, {"modulator.kind": "mine:Second"})
    assert "args" not in other_kind["modulator"]


def test_a_tree_that_names_a_recipe_file_must_be_complete() -> None:
    tree = {**resolve({}), "method": "mine.yaml"}
    assert resolve(tree) == tree

    del tree["task"]
    with pytest.raises(ValueError, match=r"Section task is missing\. To start from recipe mine\.yaml"):
        resolve(tree)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(UserError, match="Unknown method 'maple2'"):
        resolve({"method": "maple2"})


def test_an_unknown_setting_is_refused_with_the_settings_of_its_section() -> None:
    with pytest.raises(UserError, match=r"Unknown setting 'optim\.speed'\. Settings of optim: lr, "):
        overridden(resolve({}), {"optim.speed": 1})


def test_a_recipe_contains_only_the_published_settings() -> None:
    assert recipe("coop").settings["optim"] == {"lr": 0.002}


def test_the_kind_of_a_task_is_selected_by_its_augmentation() -> None:
    assert kind_field("task") == "augmentation"
