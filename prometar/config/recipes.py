"""Recipes: the published settings of each method, and their sources.

A recipe contains only the settings that differ from the defaults, which are those of ProMetaR.
`Config(method=NAME)` starts from the recipe of the method.

Some authors publish other settings for some datasets, protocols or numbers of shots. A recipe lists these
settings in `by`. `prometar.config.settings.configure` applies the entries of `by` that match a run.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, JsonValue, ValidationError, field_validator, model_validator

from prometar.config.sections import SECTIONS, default_section, is_setting, merge_section, settings_of
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

Protocol = Literal["base-to-new", "cross-dataset", "domain-generalisation", "few-shot"]
"""Benchmark protocol (docs/protocols.md)."""


def _as_list(value: object) -> object:
    """Return a single name or number as a list, so that recipes may omit the brackets."""
    return [value] if isinstance(value, str | int) else value


class PublishedEntry(StrictModel):
    """Published settings for the runs that fulfill all conditions of the entry.

    The conditions are `dataset`, `protocol` and `shots`. A condition of None is fulfilled by every run.

    Args:
        dataset: Training datasets.
        protocol: Benchmark protocols.
        shots: Numbers of training images per class.
        settings: Settings that differ from those of the recipe, by section.
    """

    dataset: Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_as_list)] | None = None
    protocol: Annotated[tuple[Protocol, ...], Field(min_length=1), BeforeValidator(_as_list)] | None = None
    shots: Annotated[tuple[int, ...], Field(min_length=1), BeforeValidator(_as_list)] | None = None
    settings: SettingsBySection = Field(min_length=1)

    @field_validator("settings")
    @classmethod
    def _check_settings(cls, settings: SettingsBySection) -> SettingsBySection:
        return _require_settings(settings)

    @model_validator(mode="after")
    def _require_condition(self) -> Self:
        if self.dataset is None and self.protocol is None and self.shots is None:
            raise ValueError(
                "an entry needs dataset, protocol or shots. Otherwise, use the recipe's settings"
            )
        return self

    def matches(self, dataset: str, protocol: Protocol, shots: int) -> bool:
        """Return True if the entry applies to a run."""
        fits_dataset = self.dataset is None or dataset in self.dataset
        fits_protocol = self.protocol is None or protocol in self.protocol
        fits_shots = self.shots is None or shots in self.shots
        return fits_dataset and fits_protocol and fits_shots

    @property
    def condition(self) -> str:
        """The runs to which the entry applies, such as "few-shot, 1 shot"."""
        parts = []
        if self.dataset is not None:
            parts.append(" ".join(self.dataset))
        if self.protocol is not None:
            parts.append(" ".join(self.protocol))
        if self.shots is not None:
            noun = "shot" if self.shots == (1,) else "shots"
            parts.append(f"{' '.join(map(str, self.shots))} {noun}")
        return ", ".join(parts)

    def __str__(self) -> str:
        return f"{self.condition}: {describe_settings(self.settings)}"


class Recipe(StrictModel):
    """Published settings of one method.

    Args:
        settings: Settings that differ from ProMetaR's, by section.
        by: Published settings for datasets, protocols and numbers of shots. The entries that match a run
            apply in order, after `settings`.
        space: Search space of studies of the method: the name of a built-in space, or a YAML file.
        name: Name of the method. For a recipe file, the name of the file.
        title: Name of the method in the paper.
        about: What the method learns.
        paper: Publication.
        source: Where the settings were published.
        unverified: Details that were not compared with the publication, or "".
    """

    settings: SettingsBySection
    by: tuple[PublishedEntry, ...] = ()
    space: str = Field("default", min_length=1)
    name: str = ""
    title: str = ""
    about: str = ""
    paper: str = ""
    source: str = ""
    unverified: str = ""

    @field_validator("settings")
    @classmethod
    def _check_settings(cls, settings: SettingsBySection) -> SettingsBySection:
        return _require_settings(settings)

    def entries_for(self, dataset: str, protocol: Protocol, shots: int) -> list[PublishedEntry]:
        """Return the entries in `by` that apply to a run, in order."""
        return [entry for entry in self.by if entry.matches(dataset, protocol, shots)]

    def settings_with(self, entries: Iterable[PublishedEntry]) -> SettingsBySection:
        """Return the settings of the recipe, updated with the settings of `entries`. Later entries win.

        Example:
            >>> recipe("coop").settings_with(recipe("coop").entries_for("dtd", "few-shot", 1))["train"]
            {'epochs': 50, 'batch_size': 32}
        """
        merged = dict(self.settings)
        for entry in entries:
            for section, values in entry.settings.items():
                base = default_section(section) | merged.get(section, {})
                merged[section] = merge_section(section, base, values)
        return merged


def describe_settings(settings: SettingsBySection) -> str:
    """Return settings as text, in the form that `--set` accepts.

    Example:
        >>> describe_settings({"train": {"epochs": 5, "batch_size": 32}})
        'train.epochs=5 train.batch_size=32'
    """
    assignments: list[str] = []
    for section, values in settings.items():
        for name, value in values.items():
            text = "null" if value is None else str(value)  # YAML would read "None" as text
            assignments.append(f"{section}.{name}={text}")
    return " ".join(assignments)


def describe_entries(entries: Sequence[PublishedEntry]) -> str:
    """Return one line about the entries that apply to a run, or "" if there are none."""
    if not entries:
        return ""
    listed = "; ".join(str(entry) for entry in entries)
    return f"Published settings for {listed}"


def _reject_excluded(settings: SettingsBySection) -> None:
    """Check that no setting is in `_EXCLUDED`, which contains sections and dotted keys.

    Raises:
        ValueError: a setting is excluded.
    """
    given = set(settings)
    for section, values in settings.items():
        given.update(f"{section}.{name}" for name in values)
    excluded = sorted(given.intersection(_EXCLUDED))
    if excluded:
        raise ValueError(f"{excluded[0]} is not allowed in recipes. Set it with a command-line option.")


def _require_settings(settings: SettingsBySection) -> SettingsBySection:
    """Return `settings` if a recipe may contain them.

    Raises:
        ValueError: a setting is unknown or excluded.
    """
    _reject_excluded(settings)
    for section, values in settings.items():
        if section not in SECTIONS:
            raise ValueError(f"{section} is not a section. Sections: {', '.join(SECTIONS)}")
        for name in values:
            if not is_setting(f"{section}.{name}"):
                known = ", ".join(settings_of(section))
                raise ValueError(f"{section}.{name} is not a setting. Settings of {section}: {known}")
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
    return _read_recipe_file(Path(method))


def _read_recipe_file(path: Path) -> Recipe:
    """Load a recipe file. Its name is that of the file, and its default title is that name without suffix.

    Raises:
        UserError: the file is not a valid recipe.
    """
    content: dict[object, object] = {"title": path.stem}
    tree = read_yaml(path)
    if isinstance(tree, dict):  # otherwise, the validation reports that `settings` is missing
        content.update(tree)
    content["name"] = path.name
    try:
        loaded = Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path} is not a valid recipe: {problems_of(error)}") from None
    require_datasets(loaded, where=f"{path} is not a valid recipe: by")
    return loaded


def require_datasets(checked: Recipe, *, where: str) -> None:
    """Check that the datasets named in `by` exist.

    Raises:
        UserError: a dataset is unknown. The message starts with `where`.
    """
    names: set[str] = set()
    for entry in checked.by:
        if entry.dataset is not None:
            names.update(entry.dataset)
    if not names:
        return
    # The import is slow, and most recipes name no dataset.
    from prometar.data.datasets.catalog import require_name

    for name in sorted(names):
        try:
            require_name(name)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None


@cache
def _read_built_in(name: str) -> Recipe:
    text = files("prometar.config").joinpath("recipes", f"{name}.yaml").read_text("utf-8")
    return Recipe(name=name, **parse_yaml(text, where=f"recipe {name}"))
