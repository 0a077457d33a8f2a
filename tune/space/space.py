"""Search spaces as data: a YAML file of settings and their ranges, some with conditions."""

from collections.abc import Mapping, Set
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError, model_validator

from prometar.config.settings import Config, flatten, is_setting
from prometar.errors import UserError
from prometar.io.files import size_of
from prometar.io.plain_data import PlainData, problems_of
from prometar.io.yamltext import parse_yaml, read_yaml
from tune.space.ranges import Choice, Range, Settings, Value

if TYPE_CHECKING:
    from optuna import Trial

EPOCHS = "train.epochs"
"""Setting that determines how long a trial is."""
_SPACES = files("tune.space") / "spaces"
MOST_COMBINATIONS = 1000
"""Size up to which a space without floats is enumerated."""


class Space(PlainData):
    """Ranges by dotted setting, in the order in which they are sampled.

    Example:
        >>> lr = {"type": "float", "low": 1e-4, "high": 0.1, "log": True}
        >>> Space(name="mine", ranges={"optim.lr": lr}).describe()
        {'optim.lr': '0.0001 .. 0.1 (log)'}
    """

    name: str
    ranges: Mapping[str, Range]

    @model_validator(mode="after")
    def _possible_conditions(self) -> Self:
        above: dict[str, Range] = {}
        for key, entry in self.ranges.items():
            for other, values in entry.when.items():
                if other not in above:
                    raise ValueError(f"{key}: its condition '{other}' must be a setting above it")
                if not values or not all(map(above[other].contains, values)):
                    raise ValueError(f"{key}: its condition requires {other} in {above[other].describe()}")
            above[key] = entry
        return self

    def sample(self, trial: "Trial") -> dict[str, Value]:
        """Sample every setting whose conditions hold."""
        settings: dict[str, Value] = {}
        for key, entry in self.ranges.items():
            if entry.active(settings):
                settings[key] = entry.suggest(key, trial)
        return settings

    def combinations(self) -> list[dict[str, Value]] | None:
        """All settings of the space, None if they are too many to enumerate."""
        found: list[dict[str, Value]] = [{}]
        for key, entry in self.ranges.items():
            if entry.type == "float":
                return None
            values = (
                entry.choices if isinstance(entry, Choice) else range(int(entry.low), int(entry.high) + 1)
            )
            if len(found) * len(values) > MOST_COMBINATIONS:
                return None
            found = [
                {**settings, **chosen}
                for settings in found
                for chosen in ([{key: value} for value in values] if entry.active(settings) else [{}])
            ]
        return found

    def values_of(self, config: Config) -> dict[str, Value]:
        """Return a configuration's values of the searched settings.

        Raises:
            UserError: a setting does not exist, or its value lies outside its range.
        """
        defaults, given = config.flat(), dict[str, Value]()
        for key, entry in self.ranges.items():
            active = entry.active(given)  # each kind of a part has its own settings
            if key not in defaults and (active or not (is_setting(key) or ".args." in key)):
                raise UserError(f"--space {self.name} searches {key}, which is not a setting of a run.")
            if active:
                given[key] = defaults[key]
        return self.checked(given, what="the default settings")

    def checked(self, given: Settings, *, what: str) -> dict[str, Value]:
        """Return the given values that are sampled together. Missing ones remain open.

        Raises:
            UserError: a value lies outside its range, or a setting is not searched.
        """
        unknown = sorted(given.keys() - self.ranges.keys())
        if unknown:
            raise UserError(f"{what}: {unknown[0]} is not searched by the space {self.name}. Remove it.")
        values: dict[str, Value] = {}
        inactive: set[str] = set()
        for key, entry in self.ranges.items():
            if any(o in inactive or (o in values and values[o] not in v) for o, v in entry.when.items()):
                inactive.add(key)
            elif key in given:
                if not entry.contains(given[key]):
                    raise UserError(
                        f"{what}: {key} = {given[key]!r} lies outside the range {entry.describe()} of the "
                        f"space {self.name}. Choose a value in it, or pass a --space FILE with a wider one."
                    )
                values[key] = given[key]
        return values

    def fitted(self, config: Config, fixed: Set[str] = frozenset()) -> Self:
        """Return the space without settings that have no effect or whose default lies outside the range.

        Conditions on settings that are left out are replaced by their default values.

        Args:
            fixed: Settings that are left out anyway.
        """
        defaults, kept = config.flat(), dict[str, Range]()
        for key, whole in self.ranges.items():
            absent = whole.when.keys() - kept.keys()
            if key in fixed or any(defaults.get(other) not in whole.when[other] for other in absent):
                continue
            when = {other: values for other, values in whole.when.items() if other in kept}
            entry = whole.model_copy(update={"when": when})
            if entry.active(defaults) and key in defaults and not entry.contains(defaults[key]):
                continue
            beside = _context(entry, kept)
            first, *others = (_run(config.override({**beside, key: value})) for value in entry.tried)
            if any(other != first for other in others):
                kept[key] = entry
        return self.model_copy(update={"ranges": kept})

    def tried(self, key: str) -> tuple[Value, ...]:
        """Return values of a setting that show if it has an effect. Empty if it is not searched."""
        return self.ranges[key].tried if key in self.ranges else ()

    def describe(self) -> dict[str, str]:
        """Ranges as text, by setting."""
        return {key: entry.describe() + entry.condition for key, entry in self.ranges.items()}


def _context(entry: Range, ranges: Mapping[str, Range]) -> dict[str, Value]:
    """Values of other settings beside which one is sampled."""
    context: dict[str, Value] = {}
    for other, values in entry.when.items():
        context |= {**_context(ranges[other], ranges), other: values[0]}
    return context


_PARTS = {"prompts", "regularizer", "modulator", "inner", "task", "averager"}


def _run(config: Config) -> tuple[object, dict[str, object]]:
    """Return what determines a run: its method, and the settings that no part of a method reads."""
    from prometar.methods.composition import build  # loads torch, which --help does not need

    method = build(config)
    unused = _PARTS if method.inner else {*_PARTS, "optim.gate_lr", "optim.gate_schedule"}
    others = {k: v for k, v in config.flat().items() if not {k, k.partition(".")[0]} & unused}
    return method, others


def known_spaces() -> list[str]:
    """Names of the spaces in this package."""
    return sorted(file.name.removesuffix(".yaml") for file in _SPACES.iterdir())


def load_space(name: str) -> Space:
    """Load a space by name, or from a YAML file.

    Raises:
        UserError: there is no such space or file, or an entry is not a range.
    """
    if name in known_spaces():
        text = (_SPACES / f"{name}.yaml").read_text("utf-8")
        return space_of(parse_yaml(text, where=f"space {name}"), name=name)
    if size_of(Path(name)) is None:
        raise UserError(f"--space {name} does not exist. Choose {', '.join(known_spaces())}, or a YAML file.")
    return space_of(read_yaml(Path(name)), name=name)


def space_of(ranges: object, *, name: str = "custom") -> Space:
    """Build a space from plain data, as a YAML file holds it.

    Raises:
        UserError: an entry is not a range.
    """
    if not isinstance(ranges, Mapping) or not ranges:
        raise UserError(f"--space {name} must map settings to ranges, such as {_EXAMPLE}.")
    try:
        return Space(name=name, ranges=ranges)
    except ValidationError as error:
        raise UserError(
            f"--space {name}: {problems_of(error)}. A range is, for example, {_EXAMPLE}."
        ) from None


_EXAMPLE = "optim.lr: {type: float, low: 0.001, high: 0.1, log: true}"


def load_enqueued(path: Path, space: Space) -> list[dict[str, Value]]:
    """Load the settings of a YAML file: one mapping, or a list of them.

    A mapping holds settings of the space, dotted or nested. Missing ones are sampled. Of a complete
    configuration, such as another study's best.yaml, the searched settings are taken.

    Raises:
        UserError: there is no such file, a setting is not searched, a value lies outside its range, or a
            setting is given without the settings that its condition requires.
    """
    if size_of(path) is None:
        raise UserError(f"--enqueue {path} does not exist.")
    tree = read_yaml(path)
    entries = tree if isinstance(tree, list) else [tree]
    if not entries or not all(isinstance(entry, dict) and entry for entry in entries):
        raise UserError(f"--enqueue {path} must hold settings and their values, or a list of such mappings.")
    return [_enqueued(entry, space, f"--enqueue {path}, entry {n}") for n, entry in enumerate(entries, 1)]


def _enqueued(entry: dict[str, Any], space: Space, where: str) -> dict[str, Value]:
    given = flatten(entry)
    if {"method", "data.name"} <= given.keys():  # a complete configuration
        given = {key: value for key, value in given.items() if key in space.ranges}
    settings = space.checked(given, what=where)
    if not settings:
        raise UserError(f"{where} contains no setting of the space {space.name}.")
    for key in settings:
        if missing := space.ranges[key].when.keys() - settings.keys():
            raise UserError(f"{where}: {key} requires {min(missing)}, which is missing. Add it.")
    return settings
