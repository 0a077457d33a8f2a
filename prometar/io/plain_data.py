"""Plain data that files and command lines give, as values of fixed fields."""

import re
import reprlib
from collections.abc import Iterator
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator


class PlainData(BaseModel):
    """Fields that do not change: none that is unknown, no number that is not finite, or that is no number.

    Example:
        >>> class Point(PlainData):
        ...     x: float
        >>> Point.model_validate({"x": 1}).x
        1.0
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        return no_truth(value) if _holds_numbers(cls, str(info.field_name)) else value


def no_truth(value: Any) -> Any:
    """A value or several, none of them true or false: Python counts true as 1, which nobody means.

    Raises:
        ValueError: one of them is.
    """
    for each in value if isinstance(value, list | tuple) else [value]:
        if isinstance(each, bool):
            raise ValueError(f"{str(each).lower()} is no number")
    return value


def problems_of(error: ValidationError, *, unknown: str = "unknown key") -> str:
    """All fields that are wrong, and why; `unknown`: what is said of one that does not exist."""
    said = {"extra_forbidden": unknown, "missing": "a value is needed"}
    places = (".".join(map(str, each["loc"])) for each in error.errors())
    problems = (said.get(each["type"]) or _problem(each) for each in error.errors())
    return "; ".join(": ".join(filter(None, each)) for each in zip(places, problems, strict=True))


def _problem(error: Any) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    said = re.sub(r"\d{16,}", lambda digits: f"{float(digits[0]):g}", error["msg"])  # a bound of 1e30
    return f"{said} (found {reprlib.repr(error['input'])})"


@cache
def _holds_numbers(model: type[BaseModel], field: str) -> bool:
    """Whether a field holds numbers, and no truth: looked at once, as all of them are at every change."""
    kinds = list(_kinds(model.model_fields[field].annotation))
    return bool not in kinds and (int in kinds or float in kinds)


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of."""
    parts = get_args(annotation)
    if not parts:
        yield annotation
    for part in parts:
        yield from _kinds(part)
