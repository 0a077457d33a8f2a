"""Plain data that files and command lines give, as values of fixed fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


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
        """Python counts true as 1, which nobody means."""
        kinds = list(_kinds(cls.model_fields[str(info.field_name)].annotation))
        if bool not in kinds and (int in kinds or float in kinds):
            for each in value if isinstance(value, list | tuple) else [value]:
                if isinstance(each, bool):
                    raise ValueError(f"{str(each).lower()} is no number")
        return value


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of."""
    parts = get_args(annotation)
    if not parts:
        yield annotation
    for part in parts:
        yield from _kinds(part)
