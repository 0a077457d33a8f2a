"""Recipes: each method's published settings as data, with where they come from.

A recipe holds what a method sets apart from the defaults of `config`, which are ProMetaR's.
`Config(method=NAME)` starts from it, so a method's name alone gives the settings it was published with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from prometar.errors import UserError
from prometar.io.yamltext import parse_yaml

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

    @property
    def command(self) -> str:
        """How it is run in the published setting, for one data set and seed."""
        return (
            f"prometar train --method {self.name} --data-root DIR --set data.name=dtd "
            "--set backbone.name=ViT-B-16-quickgelu --set backbone.pretrained=openai --set train.seed=1"
        )

    def complete(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration's plain data with this recipe's settings where `tree` has none of its own."""
        whole = dict(tree)
        for section, settings in self.settings.items():
            given = whole.setdefault(section, {})
            if isinstance(given, Mapping):
                whole[section] = {**settings, **given}
        return whole


@cache
def recipe(name: str) -> Recipe:
    """The recipe of a method.

    Raises:
        UserError: an unknown method.

    Example:
        >>> recipe("coop").settings["train"]
        {'epochs': 200, 'batch_size': 32}
    """
    if name not in NAMES:
        raise UserError(f"unknown method '{name}': choose one of {', '.join(NAMES)}")
    text = files("prometar.config").joinpath("recipes", f"{name}.yaml").read_text("utf-8")
    return Recipe(name, **parse_yaml(text, where=f"recipe {name}"))
