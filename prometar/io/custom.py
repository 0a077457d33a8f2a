"""Custom components: functions and classes outside the package, referenced as `package.module:Name`.

The modules must be importable on each worker: installed, on `PYTHONPATH` or in Ray's `runtime_env`.
"""

import hashlib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from traceback import extract_tb
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from prometar.errors import PrometarError, UserError, is_accelerator_error
from prometar.io.strict_model import problems_of

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_MAX_ERROR_LENGTH = 300
"""Maximum number of characters of an error of custom code that a message quotes."""


def is_custom(name: str) -> bool:
    """Return True if `name` has the form `package.module:Name`.

    Example:
        >>> [is_custom(name) for name in ("mine:Huber", "l1", "a/b.py:Huber")]
        [True, False, False]
    """
    return _REFERENCE.fullmatch(name) is not None


def load_component(reference: str) -> Any:
    """Import the module of a reference and return the component.

    Raises:
        UserError: the module is missing, its import fails, or it does not define the component.

    Example:
        >>> load_component("prometar.methods.regularizers:l1").__name__
        'l1'
    """
    module_name, _, attribute = reference.partition(":")
    with convert_errors(reference):
        try:
            module = import_module(module_name)
        except ModuleNotFoundError as error:
            is_own_module = module_name == error.name
            is_parent_package = module_name.startswith(f"{error.name}.")
            if is_own_module or is_parent_package:
                fix = "Add its folder to PYTHONPATH."
            else:
                fix = f"Install it: {module_name} imports it."
            raise UserError(f"{reference}: no module named '{error.name}'. {fix}") from None
    if not hasattr(module, attribute):
        raise UserError(f"{reference}: {module.__file__ or module_name} does not define '{attribute}'.")
    return getattr(module, attribute)


def instantiate(reference: str, args: Mapping[str, object]) -> Any:
    """Load a component and, if it is a class, instantiate it. Only dataclasses accept arguments.

    Raises:
        UserError: the component cannot be loaded, or rejects the arguments.
    """
    component = load_component(reference)
    validated = _validated_args(reference, component, args)
    if not inspect.isclass(component):
        return component
    with convert_errors(reference):
        return component(**dict(validated))


def complete_args(reference: str, args: Mapping[str, object]) -> dict[str, Any]:
    """Return the arguments of a custom class, completed with the defaults of its fields, as plain data.

    Raises:
        UserError: the component cannot be loaded, or rejects the arguments.
    """
    validated = _validated_args(reference, load_component(reference), args)
    return validated.model_dump(mode="json")


def _validated_args(reference: str, component: Any, args: Mapping[str, object]) -> BaseModel:
    """Return `args` as a pydantic model with the fields of a dataclass, completed with their defaults.

    Components that are not dataclasses accept no arguments.
    """
    with convert_errors(reference):
        config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())
        accepted = _accepted_fields(component)
        model: type[BaseModel] = create_model("Settings", __config__=config, **accepted)
        try:
            return model.model_validate(dict(args))
        except ValidationError as error:
            raise UserError(f"{reference}: {problems_of(error, unknown_text='unknown setting')}") from None


def _accepted_fields(component: Any) -> dict[str, Any]:
    """Return the fields of a dataclass by name, as pydantic's `create_model` expects them. Otherwise, {}."""
    if not (inspect.isclass(component) and is_dataclass(component)):
        return {}
    hints = get_type_hints(component, include_extras=True)
    # Pydantic takes the default or the default factory from the dataclass field.
    return {field.name: (hints[field.name], field) for field in fields(component) if field.init}


def source_digest(reference: str) -> str:
    """Return the SHA-256 (hex) of the source file of a component's module.

    Raises:
        UserError: the component cannot be loaded, or its module has no file.
    """
    load_component(reference)
    module_name, _, _ = reference.partition(":")
    with convert_errors(reference):
        file = sys.modules[module_name].__file__
        if file is None:
            raise UserError(f"{reference}: its module has no source file.")
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()


@contextmanager
def convert_errors(reference: str) -> Iterator[None]:
    """Convert an error of custom code into a one-line UserError that names the file and the line.

    SystemExit is converted too, because the import of a script may raise it. Two kinds of errors pass
    unchanged: PrometarErrors, and accelerator errors, because a retry with more memory or on another device
    may succeed.

    Raises:
        UserError: the code in the `with` block fails.
    """
    try:
        yield
    except PrometarError:
        raise
    except (Exception, SystemExit) as error:
        if is_accelerator_error(error):
            raise
        frame = extract_tb(error.__traceback__)[-1]
        location = f"{Path(frame.filename).name}, line {frame.lineno}"
        text = " ".join(str(error).split())[:_MAX_ERROR_LENGTH]
        raise UserError(f"{reference} fails: {type(error).__name__}: {text} ({location})") from error


def resolve_custom(kind: str, name: str, built_in: Iterable[str]) -> Any:
    """Load the custom component `name`. If it is a class, instantiate it without arguments.

    Args:
        kind: Kind of component, such as "sampler", for the error message.
        name: Reference of the form `package.module:Name`.
        built_in: Names of the built-in components of this kind, for the error message.

    Raises:
        UserError: the name is not of the form `package.module:Name`, or the component cannot be loaded.
    """
    if not is_custom(name):
        options = f"{', '.join(built_in)}, or package.module:Name"
        raise UserError(f"unknown {kind} '{name}': choose one of {options}")
    return instantiate(name, {})
