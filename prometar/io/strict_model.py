"""Base class of the pydantic models, and one-line descriptions of validation errors."""

import re
import reprlib
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails


class StrictModel(BaseModel):
    """Frozen model that rejects unknown keys, NaN and infinite numbers, and booleans in place of numbers.

    Pydantic's strict mode is off, so quoted numbers are accepted.

    Example:
        >>> class Point(StrictModel):
        ...     x: float
        >>> Point.model_validate({"x": "1"}).x
        1.0
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        coerce_numbers_to_str=True,  # because YAML reads the unquoted name 101 as a number
    )

    # `field_validator("*")` would include the discriminators of unions, which pydantic does not allow.
    @model_validator(mode="before")
    @classmethod
    def _reject_booleans(cls, values: object) -> object:
        """Reject booleans in numeric fields, where pydantic would convert True to 1."""
        if not isinstance(values, Mapping):
            return values
        for name, value in values.items():
            elements = value if isinstance(value, list | tuple) else [value]
            for element in elements:
                if isinstance(element, bool) and _holds_numbers(cls, name):
                    raise ValueError(f"{name}: {str(element).lower()} is not a number")
        return values


BUILT_IN = "built-in"
"""Tag of the built-in members of a union that also accepts custom components (`module:Name`)."""
_MAX_PROBLEMS = 5


def problems_of(
    error: ValidationError, *, unknown_text: str = "unknown key", omitted_tags: Collection[str] = ()
) -> str:
    """Return a description of a validation error in a single line. It lists at most five problems.

    Args:
        unknown_text: Description of an unknown field.
        omitted_tags: Tags of unions to omit from the names of fields.
    """
    texts = {"extra_forbidden": unknown_text, "missing": "a value is required"}
    problems: list[str] = []
    for details in error.errors()[:_MAX_PROBLEMS]:
        name = ".".join(str(key) for key in details["loc"] if key not in omitted_tags)
        if details["type"] in texts:
            problems.append(f"{name}: {texts[details['type']]}")
        else:
            problems.append(describe_problem(details, name))
    num_more = error.error_count() - len(problems)
    if num_more:
        problems.append(f"and {num_more} more")
    return "; ".join(problems)


_BOUNDS = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "above {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "below {lt}",
}


def describe_problem(error: ErrorDetails, name: str) -> str:
    """Return a description of an error, such as "optim.lr must be at least 0, got -1".

    Args:
        name: Name of the field, or "" if the error concerns the whole model.
    """
    kind = error["type"]
    context = error.get("ctx", {})
    given = reprlib.repr(error["input"])
    if kind == "value_error":
        return f"{name}: {context['error']}" if name else str(context["error"])
    if kind == "union_tag_invalid":
        field = context["discriminator"].strip("'")
        key = f"{name}.{field}" if name else field
        custom = " or module:Name" if BUILT_IN in error["loc"] else ""
        return f"{key} must be one of {context['expected_tags']}{custom}, got {context['tag']}"
    if kind in _BOUNDS:
        # Some versions of pydantic write all 31 digits of the bound 1e30.
        bound = _BOUNDS[kind].format(**context)
        bound = re.sub(r"\d{16,}", lambda match: f"{float(match[0]):g}", bound)
        given = given.strip("'")  # pydantic accepts numbers in quotes
        return f"{name} must be {bound}, got {given}".lstrip()
    message, _, _ = error["msg"].replace("Input should be", "must be").partition(", unable to parse")
    if name:
        separator = " " if message.startswith("must be") else ": "
        message = f"{name}{separator}{message}"
    return f"{message}, got {given}"


@cache
def _holds_numbers(model: type[BaseModel], name: object) -> bool:
    """Return True if the field `name` accepts numbers but not booleans."""
    field = model.model_fields.get(str(name))
    if field is None:
        return False
    types = set(leaf_types(field.annotation))
    return bool not in types and not types.isdisjoint({int, float})


def leaf_types(annotation: object) -> Iterator[object]:
    """Yield the innermost types of an annotation, such as int and str for `list[int] | str`."""
    nested = get_args(annotation)
    if not nested:
        yield annotation
    for inner in nested:
        yield from leaf_types(inner)
