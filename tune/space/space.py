"""Search spaces: YAML files that map settings to ranges. A range may have a condition on other settings."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pydantic import ValidationError, model_validator

from prometar.config.recipes import recipe
from prometar.config.sections import is_setting
from prometar.config.settings import Config, flatten
from prometar.errors import UserError
from prometar.io.files import file_size
from prometar.io.strict_model import StrictModel, problems_of
from prometar.io.yamltext import parse_yaml, read_yaml
from tune.space.ranges import Range, Settings, Value

if TYPE_CHECKING:
    from optuna import Trial

    from prometar.methods.composition import Method

EPOCHS_KEY = "train.epochs"
"""Key of the setting that determines the length of a trial."""
SHARED_SPACE = "default"
"""Name of the space of all methods that have no space of their own."""
_SPACES_FOLDER = files("tune.space") / "spaces"
_EXAMPLE_OF_RANGE = "optim.lr: {type: float, low: 0.001, high: 0.1, log: true}"
MAX_COMBINATIONS = 1000
"""Number of combinations above which `Space.combinations` returns None."""


class Space(StrictModel):
    """Ranges by the dotted key of a setting (`optim.lr`), in the order in which they are sampled.

    Example:
        >>> lr = {"type": "float", "low": 1e-4, "high": 0.1, "log": True}
        >>> Space(name="mine", ranges={"optim.lr": lr}).describe()
        {'optim.lr': '0.0001 .. 0.1 (log)'}
    """

    name: str
    ranges: Mapping[str, Range]

    @model_validator(mode="after")
    def _check_conditions(self) -> Self:
        earlier: dict[str, Range] = {}
        for key, entry in self.ranges.items():
            for other, values in entry.when.items():
                if other not in earlier:
                    raise ValueError(f"{key}: its condition refers to '{other}', which must be listed above")
                has_only_valid_values = all(earlier[other].contains(value) for value in values)
                if not values or not has_only_valid_values:
                    allowed = earlier[other].describe()
                    raise ValueError(f"{key}: the values for {other} in its condition must lie in {allowed}")
            earlier[key] = entry
        return self

    def sample(self, trial: "Trial") -> dict[str, Value]:
        """Sample every setting whose condition holds. Return the values by dotted key."""
        settings: dict[str, Value] = {}
        for key, entry in self.ranges.items():
            if entry.is_active(settings):
                settings[key] = entry.suggest(key, trial)
        return settings

    def combinations(self) -> list[dict[str, Value]] | None:
        """Return all combinations of settings.

        Returns:
            None if a setting is a float, or if there may be more than MAX_COMBINATIONS combinations.
        """
        combinations: list[dict[str, Value]] = [{}]
        for key, entry in self.ranges.items():
            if entry.type == "float":
                return None
            if entry.type == "choice":
                values: Sequence[Value] = entry.choices
            else:
                values = range(int(entry.low), int(entry.high) + 1)
            if len(combinations) * len(values) > MAX_COMBINATIONS:
                return None
            extended: list[dict[str, Value]] = []
            for settings in combinations:
                if entry.is_active(settings):
                    extended += [{**settings, key: value} for value in values]
                else:
                    extended.append(settings)
            combinations = extended
        return combinations

    def default_values(self, config: Config) -> dict[str, Value]:
        """Return the default values of the searched settings whose conditions hold.

        Args:
            config: Default settings.

        Raises:
            UserError: a setting does not exist, or its value lies outside its range.
        """
        values = config.flat()
        searched: dict[str, Value] = {}
        for key, entry in self.ranges.items():
            is_active = entry.is_active(searched)
            # An inactive setting may be missing, because the component's kind in `config` does not have it.
            may_be_missing = not is_active and (is_setting(key) or ".args." in key)
            if key not in values and not may_be_missing:
                raise UserError(f"--space {self.name} searches {key}, which is not a setting of a run.")
            if is_active:
                searched[key] = values[key]
        return self.check(searched, where="the default settings")

    def check(self, given: Settings, *, where: str) -> dict[str, Value]:
        """Return `given` without settings whose condition fails.

        A condition on a setting that is not given counts as met, because it may hold after sampling.

        Args:
            given: Values by dotted key.
            where: Source of the values, which error messages name.

        Raises:
            UserError: a value lies outside its range, or a setting is not searched.
        """
        unknown = given.keys() - self.ranges.keys()
        if unknown:
            raise UserError(f"{where}: {min(unknown)} is not in the space {self.name}. Remove it.")
        values: dict[str, Value] = {}
        inactive: set[str] = set()
        for key, entry in self.ranges.items():
            for other, allowed in entry.when.items():
                if other in inactive or (other in values and values[other] not in allowed):
                    inactive.add(key)
            if key in inactive or key not in given:
                continue
            if not entry.contains(given[key]):
                raise UserError(
                    f"{where}: {key} = {given[key]!r} lies outside the range {entry.describe()} of the "
                    f"space {self.name}. Choose another value, or pass a --space FILE with a wider range."
                )
            values[key] = given[key]
        return values

    def fit(self, values: Mapping[str, Any]) -> tuple[dict[str, Value], list[str]]:
        """Return the searched settings of a run, with each value moved into its range.

        Numbers outside their range are replaced with the nearest bound. Settings whose condition fails are
        left out.

        Args:
            values: Settings of a run by dotted key, such as `Config.flat()`.

        Returns:
            The settings by dotted key, and a description of each replaced value.

        Raises:
            UserError: a value is not one of the choices, or has another type than its range.

        Example:
            >>> lr = {"type": "float", "low": 1e-4, "high": 0.1, "log": True}
            >>> Space(name="mine", ranges={"optim.lr": lr}).fit({"optim.lr": 0.5, "train.epochs": 9})
            ({'optim.lr': 0.1}, ['optim.lr = 0.1 instead of 0.5'])
        """
        fitted: dict[str, Value] = {}
        changes: list[str] = []
        for key, entry in self.ranges.items():
            if key not in values or not entry.is_active(fitted):
                continue
            value = entry.nearest(values[key])
            if value is None:
                raise UserError(f"{key} = {values[key]} is not in {entry.describe()}")
            if value != values[key]:
                changes.append(f"{key} = {value} instead of {values[key]}")
            fitted[key] = value
        return fitted, changes

    def restrict(self, config: Config, fixed: Set[str] = frozenset()) -> Self:
        """Return the space without settings that have no effect, or whose range conflicts with `config`.

        A range conflicts if it does not contain the default value, or if one of its values is invalid or
        leaves nothing to learn. Conditions on removed settings are evaluated with the default values.

        Args:
            config: Default settings.
            fixed: Dotted keys of settings whose values the user has fixed. They are also removed.
        """
        defaults = config.flat()
        ranges: dict[str, Range] = {}
        for key, original in self.ranges.items():
            removed = original.when.keys() - ranges.keys()
            is_inactive = any(defaults.get(other) not in original.when[other] for other in removed)
            if key in fixed or is_inactive:
                continue
            conditions = {other: allowed for other, allowed in original.when.items() if other in ranges}
            entry = original.model_copy(update={"when": conditions})

            has_default = key in defaults and entry.is_active(defaults)
            if has_default and not entry.contains(defaults[key]):
                continue

            required = required_values(entry, ranges)
            variants = [{**required, key: value} for value in entry.probe_values]
            if _can_be_searched(config, variants):
                ranges[key] = entry
        return self.model_copy(update={"ranges": ranges})

    def probe_values(self, key: str) -> tuple[Value, ...]:
        """Return values that test a setting's range, such as its bounds, or () if it is not searched."""
        return self.ranges[key].probe_values if key in self.ranges else ()

    def describe(self) -> dict[str, str]:
        """Return each range and its condition as text, by setting."""
        return {key: entry.describe() + entry.condition_text for key, entry in self.ranges.items()}


def required_values(entry: Range, ranges: Mapping[str, Range]) -> dict[str, Value]:
    """Return values of other settings for which the condition of `entry` holds.

    The conditions of these other settings hold, too.

    Args:
        ranges: Ranges of the other settings by dotted key.
    """
    required: dict[str, Value] = {}
    for other, allowed in entry.when.items():
        required |= required_values(ranges[other], ranges)
        required[other] = allowed[0]
    return required


class _UsedSettings(NamedTuple):
    """Settings of a configuration that have an effect.

    Args:
        method: Built method, with the settings of its components.
        others: Settings that belong to no component, and those of the optimizer, by dotted key.
    """

    method: "Method"
    others: dict[str, object]


def _used_settings(config: Config) -> _UsedSettings:
    """Return the settings of `config` that have an effect.

    Raises:
        UserError: the settings conflict.
    """
    # Loads torch, which --help does not need.
    from prometar.methods.composition import KINDS, LEARNING_SECTIONS, build
    from prometar.methods.optimizers import SGD

    # The method gets the same optimizer for all configurations, because some settings of an optimizer have no
    # effect. Those that have an effect are in `others`.
    method = replace(build(config), optimizer=SGD())
    excluded = {f"optim.{section}_lr_factor" for section in LEARNING_SECTIONS - method.learning_sections}
    if not method.inner:  # Only the meta phase trains the gate (the modulator's learnable tensors).
        excluded |= {"optim.gate_lr", "optim.gate_schedule"}
    sections_of_method = KINDS.keys() - {"optim"}
    others: dict[str, object] = {}
    for key, value in config.flat().items():
        section, _, _ = key.partition(".")
        if key not in excluded and section not in sections_of_method:
            others[key] = value
    return _UsedSettings(method, others)


def _can_be_searched(config: Config, variants: Sequence[Settings]) -> bool:
    """Return True if all variants of `config` are valid and train something, and if they differ in effect.

    Args:
        config: Default settings.
        variants: Settings that replace those of `config`, by dotted key.
    """
    try:
        used_by_variant = [_used_settings(config.override(variant)) for variant in variants]
    except UserError:
        return False
    first, *others = used_by_variant
    differs = any(other != first for other in others)
    always_learns = not any(used.method.is_untrained for used in used_by_variant)
    return differs and always_learns


def built_in_spaces() -> list[str]:
    """Return the names of the spaces in this package."""
    return sorted(file.name.removesuffix(".yaml") for file in _SPACES_FOLDER.iterdir())


def space_of_method(method: str) -> str:
    """Return the space that a study of a method searches unless `--space` is given.

    The method's recipe contains this name of a built-in space or path of a file.

    Raises:
        UserError: the method is unknown, or the file is not a valid recipe.

    Example:
        >>> space_of_method("mmrl"), space_of_method("coop")
        ('mmrl', 'default')
    """
    return recipe(method).space


class SearchedSettings(NamedTuple):
    """Dotted keys of the settings that a study of a method searches by default.

    Args:
        shared: Settings that the space `default` also contains. Ranges may differ.
        own: Settings that only the method's own space contains.
    """

    shared: tuple[str, ...]
    own: tuple[str, ...]


def searched_settings(config: Config) -> SearchedSettings:
    """Return the settings that a study of `config.method` searches unless `--space` is given.

    Example:
        >>> searched_settings(Config(method="dept-coop")).own
        ('optim.logits_lr_factor', 'logits.weight', 'prompts.text_length')
    """
    shared = load_space(SHARED_SPACE).ranges
    searched = load_space(space_of_method(config.method)).restrict(config).ranges
    return SearchedSettings(
        shared=tuple(key for key in searched if key in shared),
        own=tuple(key for key in searched if key not in shared),
    )


def load_space(name: str) -> Space:
    """Load a built-in space by name, or a space from a YAML file.

    Raises:
        UserError: neither a built-in space nor a file has this name, or an entry is not a range.
    """
    if name in built_in_spaces():
        text = (_SPACES_FOLDER / f"{name}.yaml").read_text("utf-8")
        return build_space(parse_yaml(text, where=f"space {name}"), name=name)
    if file_size(Path(name)) is None:
        raise UserError(f"--space {name} does not exist. Use {', '.join(built_in_spaces())}, or a YAML file.")
    return build_space(read_yaml(Path(name)), name=name)


def build_space(ranges: object, *, name: str = "custom") -> Space:
    """Build a space from the content of a YAML file.

    Raises:
        UserError: an entry is not a range.
    """
    if not isinstance(ranges, Mapping) or not ranges:
        raise UserError(f"--space {name} must map settings to ranges, such as {_EXAMPLE_OF_RANGE}.")
    try:
        return Space(name=name, ranges=ranges)
    except ValidationError as error:
        raise UserError(
            f"--space {name}: {problems_of(error)}. Example of a range: {_EXAMPLE_OF_RANGE}."
        ) from None


def load_enqueued(path: Path, space: Space) -> list[dict[str, Value]]:
    """Load settings to enqueue from a YAML file that contains a mapping, or a list of mappings.

    A mapping contains settings of the space, with dotted or nested keys. Missing settings are sampled. A
    mapping may also be a complete configuration, such as another study's best.yaml. Of such a
    configuration, only the searched settings are read.

    Returns:
        Settings by dotted key, for each mapping.

    Raises:
        UserError: the file does not exist, a setting is not searched, a value lies outside its range, or a
            setting is given without the settings that its condition requires.
    """
    if file_size(path) is None:
        raise UserError(f"--enqueue {path} does not exist.")
    tree = read_yaml(path)
    mappings = tree if isinstance(tree, list) else [tree]
    has_only_mappings = all(
        isinstance(mapping, dict) and mapping for mapping in mappings
    )  # and no empty ones
    if not mappings or not has_only_mappings:
        raise UserError(f"--enqueue {path} must contain a mapping of settings to values, or a list of them.")
    parsed: list[dict[str, Value]] = []
    for number, mapping in enumerate(mappings, 1):
        parsed.append(_parse_mapping(mapping, space, where=f"--enqueue {path}, entry {number}"))
    return parsed


def _parse_mapping(mapping: dict[str, Any], space: Space, *, where: str) -> dict[str, Value]:
    """Return the settings of one mapping by dotted key.

    Args:
        where: Name of the mapping in error messages.

    Raises:
        UserError: as in `load_enqueued`, or the mapping contains no setting of the space.
    """
    given = flatten(mapping)
    if {"method", "data.name"} <= given.keys():  # a complete configuration
        given = {key: value for key, value in given.items() if key in space.ranges}
    settings = space.check(given, where=where)
    if not settings:
        raise UserError(f"{where} contains no setting of the space {space.name}.")
    for key in settings:
        missing = space.ranges[key].when.keys() - settings.keys()
        if missing:
            raise UserError(f"{where}: {key} requires {min(missing)}, which is missing. Add it.")
    return settings
