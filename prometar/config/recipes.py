"""Recipes: the published settings of each method, and their sources.

A recipe contains only the settings that differ from the defaults, which are those of ProMetaR.
`Config(method=NAME)` starts from the recipe of the method.
"""

from functools import cache
from importlib.resources import files
from pathlib import Path

from pydantic import JsonValue, ValidationError, field_validator

from prometar.errors import UserError
from prometar.io.strict_model import StrictModel, problems_of
from prometar.io.yamltext import parse_yaml, read_yaml

METHODS = (
    "zero-shot",
    "zero-shot-ensemble",
    "coop",
    "cocoop",
    "vpt",
    "ivlp",
    "maple",
    "kgcoop",
    "prograd",
    "promptsrc",
    "tcp",
    "mma",
    "dept-coop",
    "dept-kgcoop",
    "dept-maple",
    "mmrl",
    "coprompt",
    "prometar",
    "ivlp-regularized",
    "prometar-coop",
    "prometar-vpt",
    "prometar-maple",
)
"""Built-in methods, in display order. Each has a file in prometar/config/recipes/."""

SettingsBySection = dict[str, dict[str, JsonValue]]
"""Settings by section and name, such as {"optim": {"lr": 0.002}}."""

_EXCLUDED = ("data", "backbone", "train.seed")
"""Rejected in recipes, so that all methods are compared with the same images, backbone and seed."""


class Recipe(StrictModel):
    """Published settings of one method.

    Args:
        settings: Settings that differ from ProMetaR's, by section.
        name, title: Name (or file name) of the recipe, and the method's name in the paper.
        about: What the method learns.
        paper, source, unverified: Publication, source of the settings, and details that are not verified.
    """

    settings: SettingsBySection
    name: str = ""
    title: str = ""
    about: str = ""
    paper: str = ""
    source: str = ""
    unverified: str = ""

    @field_validator("settings")
    @classmethod
    def _reject_excluded(cls, settings: SettingsBySection) -> SettingsBySection:
        given = {*settings, *(f"{section}.{key}" for section, keys in settings.items() for key in keys)}
        if excluded := sorted(given & set(_EXCLUDED)):
            raise ValueError(f"{excluded[0]} is not allowed in recipes. Set it with a command-line option.")
        return settings


def is_recipe_file(method: str) -> bool:
    """Return True if a method is the path of a recipe file (FILE.yaml) rather than a name."""
    return Path(method).suffix in {".yaml", ".yml"}


def recipe(method: str) -> Recipe:
    """Return the recipe of a built-in method, or load a recipe file.

    Raises:
        UserError: the method is unknown, or the file is not a valid recipe.

    Example:
        >>> recipe("coop").settings["train"]
        {'epochs': 200, 'batch_size': 32}
    """
    if method in METHODS:
        return _read_built_in(method)
    if not is_recipe_file(method):
        raise UserError(f"Unknown method '{method}'. Choose one of {', '.join(METHODS)}, or FILE.yaml.")
    path = Path(method)
    tree = read_yaml(path)
    content = tree if isinstance(tree, dict) else {}  # rejected below, because `settings` is missing
    try:
        return Recipe.model_validate({"title": path.stem, **content, "name": path.name})
    except ValidationError as error:
        raise UserError(f"{path} is not a valid recipe: {problems_of(error)}") from None


@cache
def _read_built_in(name: str) -> Recipe:
    text = files("prometar.config").joinpath("recipes", f"{name}.yaml").read_text("utf-8")
    return Recipe(name=name, **parse_yaml(text, where=f"recipe {name}"))
