"""Complete settings of a run as plain data: the recipe of its method, updated with the given settings.

The settings form a tree, a dictionary of sections. This module does not validate values. The class
`prometar.config.settings.Config` validates the complete tree.
"""

from collections.abc import Mapping

from prometar.config.recipes import SettingsBySection, is_recipe_file, recipe
from prometar.config.sections import (
    SECTIONS,
    ConfigData,
    default_section,
    group_by_section,
    kind_field,
    merge_section,
    settings_of_kind,
)

DEFAULT_METHOD = "prometar"


def resolve(given: Mapping[str, object]) -> ConfigData:
    """Return a complete tree of settings: the recipe of the method in `given`, updated with `given`.

    A tree is complete if every section selects a kind. Other absent settings have the kind's defaults.

    Raises:
        UserError: the method is unknown.
        ValueError: the method is a recipe file, and `given` lacks a section. The file is not read, because
            it may have changed since the configuration was written.
    """
    method = given.get("method", DEFAULT_METHOD)
    # YAML may have read a name as a number. Validation rejects any other type.
    if not isinstance(method, str | int | float):
        return complete({}, given)
    name = str(method)
    if not is_recipe_file(name):
        return complete(recipe(name).settings, {**given, "method": name})
    missing = sorted({"method", *SECTIONS} - given.keys())
    if missing:
        raise ValueError(f"Section {missing[0]} is missing. To start from recipe {name}, use --method.")
    return complete({}, given)


def complete(settings: SettingsBySection, given: Mapping[str, object]) -> ConfigData:
    """Return a complete tree: the settings of a recipe, updated with `given`."""
    tree: ConfigData = {**settings, **given}
    for section in SECTIONS:
        given_settings = given.get(section, {})
        # A section that is not a mapping is an object of its class, or invalid. Validation decides.
        if not isinstance(given_settings, Mapping):
            continue
        published = merge_section(section, default_section(section), settings.get(section, {}))
        tree[section] = merge_section(section, published, given_settings)
    return tree


def overridden(tree: Mapping[str, ConfigData], values: Mapping[str, object]) -> ConfigData:
    """Return a complete tree with other values for dotted keys.

    Settings in `values` that the selected kind does not have are ignored. If the kind of a section changes,
    its settings that the new kind does not have are dropped.

    Raises:
        UserError: a key is not a setting.
    """
    result: ConfigData = dict(tree)
    for section, changes in group_by_section(values).items():
        base = tree[section]
        field = kind_field(section)
        kind = changes.get(field, base.get(field))
        known = settings_of_kind(section, kind)
        settings: ConfigData = {}
        args: ConfigData = {}  # single arguments of a custom component, given as SECTION.args.NAME
        for name, value in changes.items():
            if name in known:
                settings[name] = value
            if name.startswith("args."):
                args[name.removeprefix("args.")] = value
        merged = merge_section(section, base, settings)
        if args:
            merged["args"] = {**merged.get("args", {}), **args}
        result[section] = merged
    return result
