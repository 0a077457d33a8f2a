"""Pydantic models of data from files and command lines."""

import re
import reprlib
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails


class PlainData(BaseModel):
    """Frozen model that rejects unknown keys, infinite numbers, and booleans in place of numbers.

    Example:
        >>> class Point(PlainData):
        ...     x: float
        >>> Point.model_validate({"x": 1}).x
        1.0
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)

    @model_validator(mode="before")  # a field validator of "*" is not allowed in a discriminated union
    @classmethod
    def _reject_booleans(cls, tree: object) -> object:
        """Reject booleans in fields of numbers, where pydantic would convert True to 1."""
        for name, value in tree.items() if isinstance(tree, Mapping) else ():
            for each in value if isinstance(value, list | tuple) else [value]:
                if isinstance(each, bool) and _holds_numbers(cls, name):
                    raise ValueError(f"{name}: {str(each).lower()} is not a number")
        return tree


def problems_of(
    error: ValidationError, *, unknown: str = "unknown key", without: Collection[str] = ()
) -> str:
    """Return at most five problems of a validation error in one line.

    `unknown` is the message for an unknown field. Names in `without` are omitted from the path of a field.
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
    message = re.sub(r"\d{16,}", lambda digits: f"{float(digits[0]):g}", error["msg"])  # such as 10**30
    return f"{message} (found {reprlib.repr(error['input'])})"


@cache
def _holds_numbers(model: type[BaseModel], name: object) -> bool:
    field = model.model_fields.get(str(name))
    kinds = set(leaf_types(field.annotation)) if field else set()
    return bool not in kinds and not kinds.isdisjoint({int, float})


def leaf_types(annotation: object) -> Iterator[object]:
    """Yield the types in a nested annotation, such as int and str of `list[int] | str`."""
    parts = get_args(annotation)
    if not parts:
        yield annotation
    for part in parts:
        yield from leaf_types(part)
