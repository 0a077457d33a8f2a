"""Ranges of settings: floats, integers and choices, some of them conditional."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, Self, cast

from pydantic import BaseModel, Field, StrictBool, field_validator, model_validator

from prometar.io.plain_data import PlainData, no_truth

if TYPE_CHECKING:
    from optuna import Trial

Value = bool | int | float | str
Settings = Mapping[str, Value]
"""Values by dotted key."""


class _Range(BaseModel):
    """Base of all kinds.

    Not a `PlainData`, because pydantic allows no validator of all fields in a discriminated union.

    Args:
        when: Values of other settings for which this one is sampled.
    """

    model_config = PlainData.model_config

    when: Mapping[str, tuple[Value, ...]] = Field(default={}, exclude_if=lambda when: not when)

    @field_validator("when", mode="before")
    @classmethod
    def _as_lists(cls, when: object) -> object:
        if not isinstance(when, Mapping):
            return when
        return {key: values if isinstance(values, list | tuple) else [values] for key, values in when.items()}

    @property
    def condition(self) -> str:
        """`when` as text, "" if there is none."""
        texts = [f"{key} = {' or '.join(map(str, values))}" for key, values in self.when.items()]
        return f" if {' and '.join(texts)}" if texts else ""

    def active(self, settings: Settings) -> bool:
        """Return True if the setting is sampled beside `settings`."""
        return all(key in settings and settings[key] in values for key, values in self.when.items())


class _Numbers(_Range):
    low: float
    high: float
    log: StrictBool = Field(default=False, exclude_if=lambda log: not log)

    _no_truth = field_validator("low", "high", mode="before")(no_truth)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError(f"low {self.low} must be below high {self.high}, and above 0 with log")
        return self

    @property
    def tried(self) -> tuple[float, ...]:
        """Values that show if a setting has an effect."""
        return self.low, self.high

    def contains(self, value: object) -> bool:
        return (
            isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high
        )

    def describe(self) -> str:
        return f"{self.low:.12g} .. {self.high:.12g}{' (log)' if self.log else ''}"


class FloatRange(_Numbers):
    """low <= value <= high, sampled uniformly or uniformly in the logarithm."""

    type: Literal["float"]

    @property
    def tried(self) -> tuple[float, ...]:
        """Values that show if a setting has an effect. The last one is refused by a setting of integers."""
        return self.low, self.high, self.low + (self.high - self.low) / math.pi

    def suggest(self, name: str, trial: "Trial") -> float:
        return trial.suggest_float(name, self.low, self.high, log=self.log)


class IntRange(_Numbers):
    """Integers low .. high."""

    type: Literal["int"]
    low: int
    high: int

    def contains(self, value: object) -> bool:
        return isinstance(value, int) and super().contains(value)

    def suggest(self, name: str, trial: "Trial") -> int:
        return trial.suggest_int(name, self.low, self.high, log=self.log)


class Choice(_Range):
    """One of several values."""

    type: Literal["choice"]
    choices: tuple[Value, ...] = Field(min_length=1)

    @field_validator("choices")
    @classmethod
    def _different(cls, choices: tuple[Value, ...]) -> tuple[Value, ...]:
        if len(set(choices)) < len(choices):
            raise ValueError("choices must differ")
        return choices

    @property
    def tried(self) -> tuple[Value, ...]:
        """Values that show if a setting has an effect."""
        return self.choices

    def contains(self, value: object) -> bool:
        return value in self.choices

    def describe(self) -> str:
        return " | ".join(map(str, self.choices))

    def suggest(self, name: str, trial: "Trial") -> Value:
        return cast(Value, trial.suggest_categorical(name, self.choices))


Range = Annotated[FloatRange | IntRange | Choice, Field(discriminator="type")]
