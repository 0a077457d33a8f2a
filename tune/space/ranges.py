"""Ranges of settings: floats, integers and choices. A range may have a condition."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, Self, cast

from pydantic import AfterValidator, Field, StrictBool, field_validator, model_validator

from prometar.io.strict_model import StrictModel

if TYPE_CHECKING:
    from optuna import Trial

Value = bool | int | float | str
Settings = Mapping[str, Value]
"""Values of searched settings, by dotted key."""


def _distinct(values: tuple[object, ...]) -> tuple[object, ...]:
    if len(set(values)) < len(values):
        raise ValueError(f"values must be distinct, got {' '.join(map(str, values))}")
    return values


Distinct = AfterValidator(_distinct)


class _Range(StrictModel):
    """Base class of ranges.

    when: Condition, {} if none. The setting is sampled only if every setting in `when` has a listed value.
    """

    when: Mapping[str, tuple[Value, ...]] = Field(default={}, exclude_if=lambda when: not when)

    @field_validator("when", mode="before")
    @classmethod
    def _wrap_single_values(cls, when: object) -> object:
        if not isinstance(when, Mapping):
            return when
        return {key: values if isinstance(values, list | tuple) else [values] for key, values in when.items()}

    @property
    def condition_text(self) -> str:
        """`when` as a clause, such as " if prompts.kind = coupled", or "" without a condition."""
        texts = [f"{key} = {' or '.join(map(str, values))}" for key, values in self.when.items()]
        return f" if {' and '.join(texts)}" if texts else ""

    def is_active(self, settings: Settings) -> bool:
        """Return True if `settings` satisfy the condition, or if there is none."""
        return all(key in settings and settings[key] in values for key, values in self.when.items())


_IntIfWhole = Annotated[float, AfterValidator(lambda x: int(x) if x.is_integer() else x)]  # 8.0 -> 8


class NumberRange(_Range):
    """Floats or integers from low to high, both included. With `log`, they are sampled on a log scale."""

    type: Literal["float", "int"]
    low: _IntIfWhole
    high: _IntIfWhole
    log: StrictBool = Field(default=False, exclude_if=lambda log: not log)

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be above 0 with log, got {self.low}")
        if self.type == "int" and not (isinstance(self.low, int) and isinstance(self.high, int)):
            raise ValueError(f"low and high must be integers, got {self.low} and {self.high}")
        return self

    @property
    def probe_values(self) -> tuple[float, ...]:
        """Values that test if a setting accepts the range: bounds and, for floats, also a non-integer."""
        non_integer = (self.low + (self.high - self.low) / math.pi,) if self.type == "float" else ()
        return self.low, self.high, *non_integer

    def contains(self, value: object) -> bool:
        kinds = (int,) if self.type == "int" else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and self.low <= value <= self.high

    def nearest(self, value: object) -> Value | None:
        """Return the value of the range that is nearest to a number. None if it is not such a number."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        clipped = min(max(value, self.low), self.high)
        return clipped if self.contains(clipped) else None

    def describe(self) -> str:
        return f"{self.low:.12g} .. {self.high:.12g}{' (log)' if self.log else ''}"

    def suggest(self, name: str, trial: "Trial") -> float:
        if self.type == "int":
            return trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


class Choice(_Range):
    """One of several values."""

    type: Literal["choice"]
    choices: Annotated[tuple[Value, ...], Distinct] = Field(min_length=1)

    @property
    def probe_values(self) -> tuple[Value, ...]:
        """Values to validate: all choices."""
        return self.choices

    def contains(self, value: object) -> bool:
        return value in self.choices

    def nearest(self, value: object) -> Value | None:
        """Return the value if it is one of the choices, else None."""
        return cast(Value, value) if self.contains(value) else None

    def describe(self) -> str:
        return " | ".join(map(str, self.choices))

    def suggest(self, name: str, trial: "Trial") -> Value:
        return cast(Value, trial.suggest_categorical(name, self.choices))


Range = Annotated[NumberRange | Choice, Field(discriminator="type")]
