"""Search spaces as data: a YAML file of settings and their ranges, dotted or nested, some with conditions."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import (
    BaseModel,
    Field,
    StrictBool,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from prometar.config.settings import Config
from prometar.errors import UserError
from prometar.io.files import size_of
from prometar.io.plain_data import PlainData, no_truth
from prometar.io.yamltext import parse_yaml, read_yaml


class Draws(Protocol):
    """Where values come from: the part of an Optuna trial that a space uses."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


class _Range(BaseModel):
    """What all kinds share: `when` names settings, and their values for which this one is drawn.

    No `PlainData` itself: pydantic lets nothing look at every field of what `type` tells apart.
    """

    model_config = PlainData.model_config

    when: Mapping[str, tuple[bool | int | float | str, ...]] = Field(default={})

    @field_validator("when", mode="before")
    @classmethod
    def _one_value(cls, when: Any) -> Any:
        """One value need not be written as a list."""
        if not isinstance(when, Mapping):
            return when
        return {key: values if isinstance(values, list | tuple) else [values] for key, values in when.items()}

    def active(self, settings: Mapping[str, Any]) -> bool:
        """Whether this setting is drawn beside those of `settings`."""
        return all(key in settings and settings[key] in values for key, values in self.when.items())


class Numbers(_Range):
    """low <= value <= high, uniform, or uniform in the logarithm."""

    low: float
    high: float
    log: StrictBool = False

    _no_truth = field_validator("low", "high", mode="before")(no_truth)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError(f"low {self.low} must be below high {self.high}, and above 0 with log")
        return self

    @property
    def tried(self) -> tuple[float, ...]:
        """Values that tell whether a run takes the range, its ends among them."""
        return self.low, self.high

    def holds(self, value: Any) -> bool:
        return is_number(value) and self.low <= value <= self.high

    def between(self, u: float) -> float:
        """The value at 0 <= u <= 1 of the range."""
        if self.log:
            return float(self.low * (self.high / self.low) ** u)
        return float(self.low + u * (self.high - self.low))

    def unit(self, value: Any) -> float:
        """The inverse of `between`; what is outside the range is at the nearer end."""
        low, high = self.low, self.high
        value = min(max(value, low), high)
        if self.log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return float((value - low) / (high - low))

    def features(self, value: Any) -> tuple[float, ...]:
        """What a linear model sees of a value: its place, of mean 0 and variance 1 over draws; 0 of none."""
        return ((self.unit(value) - 0.5) * math.sqrt(12) if is_number(value) else 0.0,)

    def values(self) -> str:
        return f"{self.low:.12g} .. {self.high:.12g}{' (log)' if self.log else ''}"


class FloatRange(Numbers):
    type: Literal["float"]

    @property
    def tried(self) -> tuple[float, ...]:
        """The ends, and a value between, which a setting of whole numbers does not take."""
        return self.low, self.high, self.between(1 / math.pi)

    def draw(self, name: str, draws: Draws) -> float:
        return draws.suggest_float(name, self.low, self.high, log=self.log)


class IntRange(Numbers):
    """Whole numbers low .. high."""

    type: Literal["int"]
    low: int
    high: int

    def draw(self, name: str, draws: Draws) -> int:
        return draws.suggest_int(name, self.low, self.high, log=self.log)

    def holds(self, value: Any) -> bool:
        return isinstance(value, int) and super().holds(value)


class Choice(_Range):
    """One of several values."""

    type: Literal["choice"]
    choices: tuple[bool | int | float | str, ...] = Field(min_length=1)

    @field_validator("choices")
    @classmethod
    def _different(cls, choices: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(choices)) < len(choices):
            raise ValueError("a choice is there twice")
        return choices

    @property
    def tried(self) -> tuple[Any, ...]:
        return self.choices

    def draw(self, name: str, draws: Draws) -> Any:
        return draws.suggest_categorical(name, self.choices)

    def holds(self, value: Any) -> bool:
        return value in self.choices

    def unit(self, value: Any) -> float:
        """Choices at equal distances in [0, 1]; what is none of them is with the first."""
        place = self.choices.index(value) if value in self.choices else 0
        return place / max(1, len(self.choices) - 1)

    def features(self, value: Any) -> tuple[float, ...]:
        """What a linear model sees of a value: a number a choice, as of `Numbers`; zeros of none."""
        share = 1 / len(self.choices)
        if value not in self.choices or share == 1:
            return (0.0,) * len(self.choices)
        return tuple(((value == each) - share) / math.sqrt(share * (1 - share)) for each in self.choices)

    def values(self) -> str:
        return " | ".join(map(str, self.choices))


def is_number(value: Any) -> bool:
    """Whether a setting's value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


EPOCHS = "train.epochs"
"""The setting that decides how long a trial is."""

Range = FloatRange | IntRange | Choice
_ENTRY: TypeAdapter[Range] = TypeAdapter(Annotated[Range, Field(discriminator="type")])


@dataclass(frozen=True)
class Space:
    """Ranges by dotted setting."""

    name: str
    ranges: Mapping[str, Range]

    @classmethod
    def of(cls, ranges: Mapping[str, Any], *, name: str = "own") -> Self:
        """A space from plain data, as a YAML file of one holds it.

        Raises:
            UserError: no mapping, or an entry that is no range.

        Example:
            >>> Space.of({"optim.lr": {"type": "float", "low": 1e-4, "high": 0.1, "log": True}}).ranges.keys()
            dict_keys(['optim.lr'])
        """
        if not isinstance(ranges, Mapping) or not ranges:
            raise UserError(f"space {name}: expected a mapping of settings to ranges, one at least")
        found: dict[str, Range] = {}
        for key, tree in _flat(ranges):
            try:
                entry = _ENTRY.validate_python(tree)
            except ValidationError as error:
                first = error.errors()[0]
                where = "".join(f"{part}: " for part in first["loc"][1:])
                problem = _PROBLEMS.get(first["type"]) or first["msg"].removeprefix("Value error, ")
                raise UserError(f"space {name}, {key}: {where}{problem}") from None
            if key in found:
                raise UserError(f"space {name}: {key} is there twice")
            _require_conditions(name, key, entry, found)
            found[key] = entry
        return cls(name, found)

    def draw(self, draws: Draws) -> dict[str, Any]:
        """One value a setting, in the space's order; settings whose conditions do not hold are left out."""
        values: dict[str, Any] = {}
        for key, entry in self.ranges.items():
            if entry.active(values):
                values[key] = entry.draw(key, draws)
        return values

    @property
    def conditional(self) -> bool:
        """Whether some settings are drawn only beside certain values of others."""
        return any(entry.when for entry in self.ranges.values())

    def values_of(self, config: Config) -> dict[str, Any]:
        """This configuration's own values of the searched settings.

        Raises:
            UserError: a setting that does not exist, or a value outside its range.
        """
        own, given = config.flat(), dict[str, Any]()
        for key, entry in self.ranges.items():
            if entry.active(given) or ".args." not in key:  # args are those of the chosen part alone
                if key not in own:
                    raise UserError(f"the space {self.name} searches '{key}', which is no setting of a run")
                given[key] = own[key]
        return self.checked(given, what="the reference settings")

    def checked(self, given: Mapping[str, Any], *, what: str) -> dict[str, Any]:
        """The given values of the settings that are drawn together; those that lack one are left open.

        Raises:
            UserError: a value outside its range, or a setting that is not searched.
        """
        unknown = sorted(set(given) - set(self.ranges))
        if unknown:
            raise UserError(f"{what}: '{unknown[0]}' is not searched by the space {self.name}")
        values: dict[str, Any] = {}
        closed: set[str] = set()  # settings whose conditions do not hold
        for key, entry in self.ranges.items():
            if any(o in closed or (o in values and values[o] not in held) for o, held in entry.when.items()):
                closed.add(key)
            if key not in given or key in closed:
                continue
            if not entry.holds(given[key]):
                raise UserError(
                    f"the space {self.name} must hold {what}: {key} is {given[key]!r}, its range "
                    f"{entry.values()}; take a value in it, or a --space FILE with a wider one"
                )
            values[key] = given[key]
        return values

    def describe(self) -> dict[str, str]:
        """Ranges as text, by setting."""
        return {key: entry.values() + _conditions(entry) for key, entry in self.ranges.items()}


def _conditions(entry: Range) -> str:
    texts = [f"{key} = {' or '.join(map(str, values))}" for key, values in entry.when.items()]
    return f" where {' and '.join(texts)}" if texts else ""


def known_spaces() -> list[str]:
    """Names of the spaces that come with the project."""
    return sorted(f.name.removesuffix(".yaml") for f in files("tune.space").joinpath("spaces").iterdir())


def load_space(name: str) -> Space:
    """A space by name, or from a YAML file.

    Raises:
        UserError: no such space or file, or an entry that is no range.
    """
    if name in known_spaces():
        return parse_space(name, files("tune.space").joinpath("spaces", f"{name}.yaml").read_text("utf-8"))
    path = Path(name)
    if size_of(path) is None:
        raise UserError(f"unknown space '{name}': no such file, and known are {', '.join(known_spaces())}")
    return Space.of(read_yaml(path), name=name)


def parse_space(name: str, text: str) -> Space:
    """A space from YAML text; see `load_space`."""
    return Space.of(parse_yaml(text, where=f"space {name}"), name=name)


_PROBLEMS = {
    "union_tag_not_found": "its `type` is missing: float, int or choice",
    "tuple_type": "expected a list, [a, b]",
    "model_attributes_type": "expected a range, such as {type: float, low: 0.5, high: 200}",
}
"""Where pydantic's words speak of its own insides."""


def _flat(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Entries by dotted setting: a mapping without a `type` holds settings of its own."""
    for key, entry in tree.items():
        is_group = isinstance(entry, dict) and entry and "type" not in entry
        if is_group and all(isinstance(value, dict) for value in entry.values()):
            yield from _flat(entry, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", entry


def _require_conditions(name: str, key: str, entry: Range, before: Mapping[str, Range]) -> None:
    for other, values in entry.when.items():
        if other not in before:
            raise UserError(f"space {name}, {key}: its condition '{other}' must be a setting above it")
        impossible = [value for value in values if not before[other].holds(value)]
        if impossible or not values:
            raise UserError(
                f"space {name}, {key}: {other} is never {impossible[0] if impossible else 'nothing'}, "
                f"its range is {before[other].values()}"
            )
