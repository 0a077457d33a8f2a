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
    """Return `values`.

    Raises:
        ValueError: two of them are equal.
    """
    if len(set(values)) < len(values):
        raise ValueError(f"values must be distinct, got {' '.join(map(str, values))}")
    return values


Distinct = AfterValidator(_distinct)
"""Annotation of a tuple whose values must be distinct."""


class _Range(StrictModel):
    """Base class of ranges.

    Args:
        when: Condition: allowed values of other settings, by dotted key. The setting is sampled only if each
            of these settings has one of its allowed values. Default: {}, no condition.
    """

    when: Mapping[str, tuple[Value, ...]] = Field(default={}, exclude_if=lambda when: not when)

    @field_validator("when", mode="before")
    @classmethod
    def _wrap_single_values(cls, when: object) -> object:
        """Accept a single allowed value instead of a list: {prompts.kind: coupled}."""
        if not isinstance(when, Mapping):
            return when
        wrapped: dict[object, object] = {}
        for key, values in when.items():
            wrapped[key] = values if isinstance(values, list | tuple) else [values]
        return wrapped

    @property
    def condition_text(self) -> str:
        """`when` as a clause, such as " if prompts.kind = coupled", or "" without a condition."""
        if not self.when:
            return ""
        clauses: list[str] = []
        for key, values in self.when.items():
            allowed = " or ".join(map(str, values))
            clauses.append(f"{key} = {allowed}")
        return f" if {' and '.join(clauses)}"

    def is_active(self, settings: Settings) -> bool:
        """Return True if `settings` satisfy the condition, or if there is none."""
        return all(key in settings and settings[key] in values for key, values in self.when.items())


def _int_if_whole(number: float) -> float:
    """Return a whole number, such as 8.0, as an integer. Return other numbers unchanged."""
    return int(number) if number.is_integer() else number


_Bound = Annotated[float, AfterValidator(_int_if_whole)]
"""Bound of a range. A whole bound is an integer, as both bounds of an integer range must be."""


class NumberRange(_Range):
    """Floats or integers from low to high, both included. With `log`, they are sampled on a log scale."""

    type: Literal["float", "int"]
    low: _Bound
    high: _Bound
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
        """Values that show whether a setting accepts the range: both bounds and, for floats, a third value.

        The third value is not an integer. A setting that accepts only integers rejects it, even if it accepts
        both bounds.
        """
        if self.type == "int":
            return self.low, self.high
        non_integer = self.low + (self.high - self.low) / math.pi
        return self.low, self.high, non_integer

    def contains(self, value: object) -> bool:
        """Return True if `value` is a number of the range's type and lies within the bounds."""
        if isinstance(value, bool):  # `bool` is a subclass of `int`
            return False
        types = int if self.type == "int" else int | float
        return isinstance(value, types) and self.low <= value <= self.high

    def nearest(self, value: object) -> Value | None:
        """Return the value of the range that is nearest to `value`.

        Returns:
            A bound if `value` lies outside the range. None if `value` is not a number, or if it is a
            non-integer within an integer range.
        """
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        clipped = min(max(value, self.low), self.high)
        return clipped if self.contains(clipped) else None

    def describe(self) -> str:
        """Return the bounds and the scale as text, such as "0.001 .. 0.1 (log)"."""
        scale = " (log)" if self.log else ""
        return f"{self.low:.12g} .. {self.high:.12g}{scale}"

    def suggest(self, name: str, trial: "Trial") -> float:
        """Sample a value of the setting `name` with Optuna."""
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
        """Return True if `value` is one of the choices."""
        return value in self.choices

    def nearest(self, value: object) -> Value | None:
        """Return the value if it is one of the choices, else None."""
        return cast(Value, value) if self.contains(value) else None

    def describe(self) -> str:
        """Return the choices as text, such as "sgd | adam"."""
        return " | ".join(map(str, self.choices))

    def suggest(self, name: str, trial: "Trial") -> Value:
        """Sample a value of the setting `name` with Optuna."""
        return cast(Value, trial.suggest_categorical(name, self.choices))


Range = Annotated[NumberRange | Choice, Field(discriminator="type")]
