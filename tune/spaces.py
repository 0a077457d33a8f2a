"""Search spaces as data: a YAML file of dotted settings and their ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from prometar.config import Config
from prometar.errors import UserError
from prometar.yamltext import parse_yaml, read_yaml


class Draws(Protocol):
    """Where values come from: the part of an Optuna trial that a space uses."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


class _Range(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FloatRange(_Range):
    """low <= value <= high, uniform, or uniform in the logarithm."""

    type: Literal["float"]
    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> FloatRange:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError(f"low {self.low} must be below high {self.high}, and above 0 with log")
        return self

    @property
    def ends(self) -> tuple[float, ...]:
        return self.low, self.high

    def draw(self, name: str, draws: Draws) -> float:
        return draws.suggest_float(name, self.low, self.high, log=self.log)

    def holds(self, value: Any) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:g} .. {self.high:g}{' (log)' if self.log else ''}"


class IntRange(_Range):
    """Whole numbers low .. high."""

    type: Literal["int"]
    low: int
    high: int
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> IntRange:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError(f"low {self.low} must be below high {self.high}, and above 0 with log")
        return self

    @property
    def ends(self) -> tuple[int, ...]:
        return self.low, self.high

    def draw(self, name: str, draws: Draws) -> int:
        return draws.suggest_int(name, self.low, self.high, log=self.log)

    def holds(self, value: Any) -> bool:
        return isinstance(value, int) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low} .. {self.high}{' (log)' if self.log else ''}"


class Choice(_Range):
    """One of several values."""

    type: Literal["choice"]
    choices: tuple[bool | int | float | str, ...] = Field(min_length=1)

    @property
    def ends(self) -> tuple[Any, ...]:
        return self.choices

    def draw(self, name: str, draws: Draws) -> Any:
        return draws.suggest_categorical(name, self.choices)

    def holds(self, value: Any) -> bool:
        return value in self.choices

    def __str__(self) -> str:
        return " | ".join(map(str, self.choices))


Range = FloatRange | IntRange | Choice
_ENTRY: TypeAdapter[Range] = TypeAdapter(Annotated[Range, Field(discriminator="type")])


@dataclass(frozen=True)
class Space:
    """Ranges by dotted setting."""

    name: str
    ranges: Mapping[str, Range]

    def draw(self, draws: Draws) -> dict[str, Any]:
        """One value a setting, in the space's order."""
        return {key: entry.draw(key, draws) for key, entry in self.ranges.items()}

    def values_of(self, config: Config) -> dict[str, Any]:
        """This configuration's own values of the searched settings.

        Raises:
            UserError: a setting that does not exist, or a value outside its range.
        """
        tree = config.model_dump(mode="json")
        values = {}
        for key, entry in self.ranges.items():
            value = _get(tree, key, self.name)
            if not entry.holds(value):
                raise UserError(
                    f"the space {self.name} must hold the reference settings: {key} is {value!r}, "
                    f"its range {entry}"
                )
            values[key] = value
        return values

    def corners(self) -> list[dict[str, Any]]:
        """One setting at an end of its range, or one of its choices, at a time."""
        return [{key: value} for key, entry in self.ranges.items() for value in entry.ends]

    def describe(self) -> dict[str, str]:
        """Ranges as text, by setting."""
        return {key: str(entry) for key, entry in self.ranges.items()}


def _get(tree: Any, key: str, space: str) -> Any:
    node = tree
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            raise UserError(f"the space {space} searches '{key}', which is no setting of a run")
        node = node[part]
    return node


def known_spaces() -> list[str]:
    """Names of the spaces that come with the project."""
    return sorted(f.name.removesuffix(".yaml") for f in files("tune").joinpath("spaces").iterdir())


def load_space(name: str) -> Space:
    """A space by name, or from a YAML file.

    Raises:
        UserError: no such space or file, or an entry that is no range.
    """
    if name in known_spaces():
        return parse_space(name, files("tune").joinpath("spaces", f"{name}.yaml").read_text("utf-8"))
    path = Path(name)
    if not path.is_file():
        raise UserError(f"unknown space '{name}': no such file, and known are {', '.join(known_spaces())}")
    return space_of(name, read_yaml(path))


def parse_space(name: str, text: str) -> Space:
    """A space from YAML text; see `load_space`."""
    return space_of(name, parse_yaml(text, where=f"space {name}"))


def space_of(name: str, tree: Any) -> Space:
    """A space from plain data; see `load_space`."""
    if not isinstance(tree, dict) or not tree:
        raise UserError(f"space {name}: expected a mapping of settings to ranges")
    ranges: dict[str, Range] = {}
    for key, entry in tree.items():
        try:
            ranges[str(key)] = _ENTRY.validate_python(entry)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"][1:])
            raise UserError(f"space {name}, {key}: {where + ': ' if where else ''}{first['msg']}") from None
    return Space(name, ranges)
