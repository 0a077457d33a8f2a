"""A part of what a reference names: its settings are typed by its fields, its methods are looked for."""

import inspect
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import MappingProxyType
from typing import Any, get_type_hints

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    create_model,
    field_serializer,
)

from prometar.errors import UserError
from prometar.io.plain_data import PlainData, problems_of
from prometar.parts.reference import failing, load, reference_of


class _Args(PlainData):
    model_config = ConfigDict(protected_namespaces=())

    @field_serializer("*", mode="wrap", when_used="json")
    def _sorted(self, value: Any, plain: SerializerFunctionWrapHandler) -> Any:
        """A set has another order in each process: the same command would not go on with its study."""
        return sorted(plain(value), key=repr) if isinstance(value, set | frozenset) else plain(value)


def complete(axis: str, reference: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data: the settings of the part that a reference names, those not given by their defaults.

    Raises:
        UserError: the part cannot be loaded, or does not take these.
    """
    return _checked(reference, load(reference), args, axis).model_dump(mode="json")


def make(axis: str, reference: str, args: Mapping[str, Any], *, needs: type | None = None) -> Any:
    """The part that a reference names: a frozen dataclass with its settings, or any other value as it is.

    Args:
        needs: A protocol, all of whose members it must have.
    Raises:
        UserError: the part cannot be loaded or made, or lacks a member.
    """
    found = load(reference)
    checked = _checked(reference, found, args, axis)
    if inspect.isclass(found):
        with failing(reference):
            found = found(**{name: getattr(checked, name) for name in type(checked).model_fields})
    if needs is not None:
        require_members(reference, found, needs)
    return found


def own_part(
    axis: str, name: str, known: Iterable[str], args: Mapping[str, Any] = MappingProxyType({})
) -> Any:
    """The user's own part `name`: `package.module:Name`, or an installed package's name for it.

    Args:
        known: The built-in names, for the message. args: The part's settings (default: none are given).
    Raises:
        UserError: it is no reference, or cannot be made.
    """
    reference = reference_of(axis, name)
    if reference is None:
        choices = ", ".join(known)
        raise UserError(
            f"unknown {axis} '{name}': choose one of {choices}, or package.module:Name of your own"
        )
    return make(axis, reference, args)


def own_reference(axis: str, name: str, known: Collection[str]) -> list[str]:
    """`package.module:Name` of the user's own part, in a list; empty for a `known` one."""
    reference = None if name in known else reference_of(axis, name)
    return [reference] if reference else []


def require_members(reference: str, part: object, needs: type) -> None:
    """Raises a UserError where a part lacks what a protocol asks for."""
    missing = [name for name in members(needs) if not hasattr(part, name)]
    if missing:
        raise UserError(
            f"{reference} is no {needs.__name__}: it has no {', '.join(missing)} (docs/extending.md)"
        )


def members(needs: type) -> list[str]:
    """What a protocol asks for, sorted.

    Example:
        >>> from collections.abc import Sized
        >>> members(Sized)
        []
    """
    own = {
        name: value for name, value in vars(needs).items() if callable(value) or isinstance(value, property)
    }
    return sorted(name for name in own if name == "__call__" or not name.startswith("_"))


def _checked(reference: str, part: Any, args: Mapping[str, Any], axis: str) -> _Args:
    try:
        return _model(reference, part).model_validate(dict(args))
    except ValidationError as error:
        problems = problems_of(error, unknown="it has no such setting")
        raise UserError(f"the args of {axis} {reference}: {problems}") from None


def _model(reference: str, part: Any) -> type[_Args]:
    """What a part takes: a dataclass's fields, and nothing of a function or another value."""
    if not inspect.isclass(part):
        return _Args
    if not is_dataclass(part) or not part.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise UserError(f"{reference} must be a function or a class with @dataclass(frozen=True)")
    with failing(reference):
        hints = get_type_hints(part, include_extras=True)
        taken: dict[str, Any] = {
            field.name: (hints[field.name], _default(field)) for field in fields(part) if field.init
        }
        return create_model(part.__name__, __base__=_Args, **taken)


def _default(field: Any) -> Any:
    if field.default is not MISSING:
        return field.default
    if field.default_factory is not MISSING:
        return Field(default_factory=field.default_factory)
    return ...
