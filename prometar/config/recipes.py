"""Recipes: each method's published settings as data, with where they come from.

A recipe holds what a method sets apart from the defaults of `config`, which are ProMetaR's.
`Config(method=NAME)` starts from it, so a method's name alone gives the settings it was published with.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from prometar.errors import UserError
from prometar.io.yamltext import parse_yaml, read_yaml

NAMES = (
    "zero-shot", "zero-shot-ensemble", "coop", "cocoop", "vpt", "ivlp", "maple", "kgcoop", "prograd",
    "promptsrc", "prometar", "ivlp-regularized", "prometar-coop", "prometar-vpt", "prometar-maple",
)  # fmt: skip
"""The methods, in the order of tables. Each is a file in prometar/config/recipes/."""


@dataclass(frozen=True)
class Recipe:
    """One method as it was published.

    Args:
        name: What it is called here. title: In its paper. about: What it is, in a line.
        paper: Where it was published. source: Where its settings are taken from.
        settings: Sections of a configuration, where they differ from the defaults.
        unverified: What of all this could not be checked.
    """

    name: str
    title: str
    about: str
    paper: str
    source: str
    settings: Mapping[str, Mapping[str, Any]]
    unverified: str = ""


def is_file(method: str) -> bool:
    """Return True if a method is a recipe file (YAML). A configuration stores only the file's name.

    Example:
        >>> is_file("mine.yaml"), is_file("coop")
        (True, False)
    """
    return Path(method).suffix in {".yaml", ".yml"}


def recipe(name: str) -> Recipe:
    """The recipe of a method, by its name or from a file of one's own.

    Raises:
        UserError: an unknown method, or a file that holds no recipe.

    Example:
        >>> recipe("coop").settings["train"]
        {'epochs': 200, 'batch_size': 32}
    """
    if is_file(name):
        return _own(Path(name))
    if name not in NAMES:
        raise UserError(f"unknown method '{name}': choose one of {', '.join(NAMES)}, or a recipe FILE.yaml")
    return _published(name)


@cache
def _published(name: str) -> Recipe:
    text = files("prometar.config").joinpath("recipes", f"{name}.yaml").read_text("utf-8")
    return Recipe(name, **parse_yaml(text, where=f"recipe {name}"))


_NO_METHODS = {"data", "backbone", "train.seed"}
"""Settings that a recipe does not contain: methods are compared on the same images and backbone."""
_OPTIONAL = tuple(field.name for field in fields(Recipe) if field.name not in {"name", "settings"})


def _own(path: Path) -> Recipe:
    """A recipe of one's own: `settings`, and as much of the rest as there is to say."""
    tree = read_yaml(path)
    if not isinstance(tree, dict) or not isinstance(tree.get("settings"), dict):
        raise UserError(f"{path} is no recipe: it needs sections of a configuration under `settings:`")
    unknown = sorted(map(str, set(tree) - {"settings", *_OPTIONAL}))
    if unknown:
        raise UserError(f"{path}: '{unknown[0]}' is unknown beside settings, {', '.join(_OPTIONAL)}")
    for section, settings in tree["settings"].items():
        if not isinstance(settings, dict):
            raise UserError(f"{path}: settings.{section} must be a mapping of settings, found {settings!r}")
        beside = sorted(_NO_METHODS & {section, *(f"{section}.{key}" for key in settings)})
        if beside:
            raise UserError(f"{path}: {beside[0]} is no part of a method: give it to the command")
    about = dict.fromkeys(_OPTIONAL, "") | {"title": path.stem}
    return Recipe(path.name, **{**about, **tree})
