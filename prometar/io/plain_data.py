"""Plain data from files and command lines as pydantic models."""

import re
import reprlib
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails


class PlainData(BaseModel):
    """Frozen fields. Unknown keys, infinite numbers, and booleans for numbers are rejected.

    Example:
        >>> class Point(PlainData):
        ...     x: float
        >>> Point.model_validate({"x": 1}).x
        1.0
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)

    @model_validator(mode="before")  # pydantic allows no validator of all fields in a discriminated union
    @classmethod
    def _no_truth_for_a_number(cls, tree: object) -> object:
        """Python counts True as 1."""
        for name, value in tree.items() if isinstance(tree, Mapping) else ():
            for each in value if isinstance(value, list | tuple) else [value]:
                if isinstance(each, bool) and _holds_numbers(cls, name):
                    raise ValueError(f"{name}: {str(each).lower()} is no number")
        return tree


def problems_of(
    error: ValidationError, *, unknown: str = "unknown key", without: Collection[str] = ()
) -> str:
    """Return wrong fields and why, at most five, in one line.

    `unknown` describes a field that does not exist. Names in `without` are left out of a field's place.
    """
    texts = {"extra_forbidden": unknown, "missing": "a value is needed"}
    problems = [
        ": ".join(filter(None, (".".join(str(part) for part in each["loc"] if part not in without), problem)))
        for each in error.errors()[:5]
        if (problem := texts.get(each["type"]) or _problem(each))
    ]
    more = error.error_count() - len(problems)
    return "; ".join([*problems, f"and {more} more"] if more else problems)


def _problem(error: ErrorDetails) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    message = re.sub(r"\d{16,}", lambda digits: f"{float(digits[0]):g}", error["msg"])  # a limit of 1e30
    return f"{message} (found {reprlib.repr(error['input'])})"


@cache
def _holds_numbers(model: type[BaseModel], name: object) -> bool:
    field = model.model_fields.get(str(name))
    kinds = set(leaf_types(field.annotation)) if field else set()
    return bool not in kinds and not kinds.isdisjoint({int, float})


def leaf_types(annotation: object) -> Iterator[object]:
    """Yield the types that an annotation is made of, in order."""
    parts = get_args(annotation)
    if not parts:
        yield annotation
    for part in parts:
        yield from leaf_types(part)
