"""One table of kinds describes the sections of a configuration.

Run this file as a script to print the rows of the table in docs/settings.md.
"""

from pathlib import Path
from typing import get_args

import pytest

from prometar.config.sections import SECTIONS, is_setting, settings_of, settings_of_kind
from prometar.config.settings import Config, parse_config
from prometar.errors import UserError
from prometar.methods.composition import KINDS, MethodConfig
from prometar.methods.section import CustomSection

EVERY_KIND = [(section, kind) for section, kinds in KINDS.items() for kind in kinds.built_in]
SETTINGS_PAGE = Path(__file__).parents[3] / "docs" / "settings.md"


def test_the_sections_of_a_configuration_are_those_of_the_tables() -> None:
    assert list(MethodConfig.model_fields) == ["method", *KINDS]
    assert list(Config.model_fields) == ["method", *SECTIONS]


@pytest.mark.parametrize("section", KINDS)
def test_the_kinds_in_the_table_are_those_that_the_classes_accept(section: str) -> None:
    kinds = KINDS[section]
    accepted_by_any: set[str] = set()
    for kind, section_class in kinds.built_in.items():
        accepted = get_args(section_class.model_fields[kinds.field].annotation)
        assert kind in accepted
        accepted_by_any.update(accepted)
    assert accepted_by_any == set(kinds.built_in)


def config_with_kind(section: str, kind: str) -> Config:
    """Return the default configuration with another kind of a section."""
    return Config().override({f"{section}.{KINDS[section].field}": kind})


@pytest.mark.parametrize(("section", "kind"), EVERY_KIND)
def test_a_section_has_the_class_of_its_kind(section: str, kind: str) -> None:
    selected = getattr(config_with_kind(section, kind), section)
    assert type(selected) is KINDS[section].built_in[kind]
    assert selected.selected_kind == kind


@pytest.mark.parametrize(("section", "kind"), EVERY_KIND)
def test_a_configuration_with_any_kind_can_be_read_from_its_plain_data(section: str, kind: str) -> None:
    config = config_with_kind(section, kind)
    assert parse_config(config.model_dump(mode="json"), where="plain data") == config


@pytest.mark.parametrize(("section", "kind"), EVERY_KIND)
def test_the_settings_of_a_kind_are_the_fields_of_its_class(section: str, kind: str) -> None:
    settings = settings_of_kind(section, kind)
    assert settings == tuple(KINDS[section].built_in[kind].model_fields)
    assert all(is_setting(f"{section}.{name}") for name in settings)


@pytest.mark.parametrize("section", KINDS)
def test_a_module_and_a_name_select_a_custom_component(section: str) -> None:
    kinds = KINDS[section]
    config = Config().override({f"{section}.{kinds.field}": "mine:Part", f"{section}.args.size": 3})
    selected = getattr(config, section)
    assert isinstance(selected, CustomSection)
    assert selected.reference == "mine:Part"
    assert selected.args == {"size": 3}
    assert "args" in settings_of(section)


@pytest.mark.parametrize("section", KINDS)
def test_an_unknown_kind_is_refused_with_all_kinds(section: str) -> None:
    kinds = KINDS[section]
    key = f"{section}.{kinds.field}"
    listed = ", ".join(f"'{kind}'" for kind in kinds.built_in)
    with pytest.raises(UserError) as refused:
        Config().override({key: "absent"})
    assert str(refused.value) == f"settings: {key} must be one of {listed} or module:Name, got absent"


def test_a_key_that_is_not_text_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^best\.yaml: 3: Keys should be strings, got 3$"):
        parse_config({3: 4}, where="best.yaml")


@pytest.mark.parametrize("section", KINDS)
def test_the_guide_lists_the_settings_of_every_kind(section: str) -> None:
    lines = SETTINGS_PAGE.read_text("utf-8").splitlines()
    for kind in KINDS[section].built_in:
        row = row_of(section, kind)
        assert row in lines, f"docs/settings.md needs this row:\n{row}"


@pytest.mark.parametrize("section", SECTIONS)
def test_the_guide_explains_every_setting(section: str) -> None:
    text = SETTINGS_PAGE.read_text("utf-8")
    for name in settings_of(section):
        if name != "args":  # explained with custom components, once for all sections
            assert f"`{section}.{name}`" in text


def row_of(section: str, kind: str) -> str:
    """Return the row of a kind in docs/settings.md: its settings that not all kinds of the section have."""
    kinds = KINDS[section]
    settings: list[str] = []
    for name, field in kinds.built_in[kind].model_fields.items():
        is_shared = all(name in section_class.model_fields for section_class in kinds.built_in.values())
        if not is_shared:
            settings.append(f"`{name}={yaml_text(field.default)}`")
    return f"| `{section}.{kinds.field}={kind}` | {', '.join(settings) or '-'} |"


def yaml_text(value: object) -> str:
    """Return a default value as YAML writes it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


@pytest.mark.parametrize(
    ("key", "kind"), [("averager.std", "averager.kind"), ("task.mixup_alpha", "task.augmentation")]
)
def test_a_setting_that_no_configuration_has_is_refused_with_the_setting_that_selects_the_kind(
    key: str, kind: str
) -> None:
    coop = Config(method="coop")
    expected = f"--set {key} does not apply to coop. Also set {kind} to one that has it."
    with pytest.raises(UserError, match=expected):
        Config.require_used(["train.epochs", key], [coop], "coop")


def test_a_setting_that_one_of_several_configurations_has_is_accepted() -> None:
    configs = [Config(method="coop"), Config(method="promptsrc")]
    Config.require_used(["averager.std"], configs, "these methods")


if __name__ == "__main__":
    print("\n".join(row_of(section, kind) for section, kind in EVERY_KIND))
