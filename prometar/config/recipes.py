"""Recipes: each method's published settings as data, with where they come from.

A recipe holds what a method sets apart from the defaults of `config`, which are ProMetaR's.
`Config(method=NAME)` starts from it, so a method's name alone gives the settings it was published with.
"""

from functools import cache
from importlib.resources import files
from pathlib import Path

from pydantic import JsonValue, ValidationError, field_validator

from prometar.errors import UserError
from prometar.io.plain_data import PlainData, problems_of
from prometar.io.yamltext import parse_yaml, read_yaml

NAMES = (
    "zero-shot", "zero-shot-ensemble", "coop", "cocoop", "vpt", "ivlp", "maple", "kgcoop", "prograd",
    "promptsrc", "prometar", "ivlp-regularized", "prometar-coop", "prometar-vpt", "prometar-maple",
)  # fmt: skip
"""The methods, in the order of tables. Each is a file in prometar/config/recipes/."""


_NO_METHODS = ("data", "backbone", "train.seed")
"""Settings that a recipe does not contain: methods are compared on the same images and backbone."""


class Recipe(PlainData):
    """One method as it was published.

    Args:
        name: Name in this package. title: Name in its paper. about: Description in one line.
        paper: Its publication. source: Source of its settings.
        settings: Sections of a configuration, where they differ from the defaults.
        unverified: What of all this could not be checked.
    """

    settings: dict[str, dict[str, JsonValue]]
    name: str = ""
    title: str = ""
    about: str = ""
    paper: str = ""
    source: str = ""
    unverified: str = ""

    @field_validator("settings")
    @classmethod
    def _of_a_method(cls, settings: dict[str, dict[str, JsonValue]]) -> dict[str, dict[str, JsonValue]]:
        given = {*settings, *(f"{section}.{key}" for section, keys in settings.items() for key in keys)}
        if beside := sorted(given & set(_NO_METHODS)):
            raise ValueError(f"{beside[0]} is not a setting of a method. Pass it to the command.")
        return settings


def is_file(method: str) -> bool:
    """Return True if a method is a recipe file (YAML). A configuration stores only the file's name.

    Example:
        >>> is_file("mine.yaml"), is_file("coop")
        (True, False)
    """
    return Path(method).suffix in {".yaml", ".yml"}


def recipe(name: str) -> Recipe:
    """Return the recipe of a method, by its name or from a user's file.

    Raises:
        UserError: an unknown method, or a file that holds no recipe.

    Example:
        >>> recipe("coop").settings["train"]
        {'epochs': 200, 'batch_size': 32}
    """
    if name in NAMES:
        return _published(name)
    if not is_file(name):
        raise UserError(f"unknown method '{name}': choose one of {', '.join(NAMES)}, or a recipe FILE.yaml")
    path = Path(name)
    tree = read_yaml(path)
    try:
        return Recipe.model_validate(
            {"title": path.stem, **tree, "name": path.name} if isinstance(tree, dict) else {}
        )
    except ValidationError as error:
        raise UserError(f"{path} is not a recipe: {problems_of(error)}") from None


@cache
def _published(name: str) -> Recipe:
    text = files("prometar.config").joinpath("recipes", f"{name}.yaml").read_text("utf-8")
    return Recipe(name=name, **parse_yaml(text, where=f"recipe {name}"))
