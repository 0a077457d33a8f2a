"""Custom components: values named `package.module:Name`, in modules that Python can import.

Workers import the same modules. `PYTHONPATH` or Ray's `runtime_env` makes them available on every machine.
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

from prometar.errors import PrometarError, UserError, is_of_accelerator
from prometar.io.plain_data import problems_of

_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


def is_reference(name: str) -> bool:
    """Return True if `name` has the form `package.module:Name`.

    Example:
        >>> [is_reference(name) for name in ("mine:Huber", "l1", "a/b.py:Huber")]
        [True, False, False]
    """
    return _REFERENCE.fullmatch(name) is not None


def load(reference: str) -> Any:
    """Import the module of a reference and return the named value.

    Raises:
        UserError: the module is missing, fails when it is imported, or lacks the name.

    Example:
        >>> load("prometar.methods.regularizers:l1").__name__
        'l1'
    """
    name, _, attribute = reference.partition(":")
    with failing(reference):
        try:
            module = import_module(name)
        except ModuleNotFoundError as error:
            ours = f"{name}.".startswith(f"{error.name}.")  # the module itself, or a package around it
            fix = "add its folder to PYTHONPATH" if ours else f"install it, {name} imports it"
            raise UserError(f"{reference}: no module named '{error.name}': {fix}") from None
    if not hasattr(module, attribute):
        raise UserError(f"{reference}: {module.__file__ or name} has no '{attribute}'")
    return getattr(module, attribute)


def make(reference: str, args: Mapping[str, object]) -> Any:
    """Return the value of a reference. A class is instantiated with `args`, validated by its fields.

    Raises:
        UserError: the component cannot be loaded, or rejects the arguments.
    """
    found = load(reference)
    settings = _settings(reference, found, args)
    with failing(reference):
        return found(**dict(settings)) if inspect.isclass(found) else found


def completed(reference: str, args: Mapping[str, object]) -> dict[str, Any]:
    """Return all arguments of a custom class as plain data, with defaults for those not given.

    Raises:
        UserError: the component cannot be loaded, or rejects the arguments.
    """
    return _settings(reference, load(reference), args).model_dump(mode="json")


def _settings(reference: str, found: Any, args: Mapping[str, object]) -> BaseModel:
    """Validate `args` by the fields of a dataclass. Everything else takes none."""
    taken: dict[str, Any] = {}
    with failing(reference):
        if inspect.isclass(found) and is_dataclass(found):
            hints = get_type_hints(found, include_extras=True)
            taken = {each.name: (hints[each.name], each) for each in fields(found) if each.init}
        config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())
        model: type[BaseModel] = create_model("Settings", __config__=config, **taken)
        try:
            return model.model_validate(dict(args))
        except ValidationError as error:
            raise UserError(f"{reference}: {problems_of(error, unknown='it has no such setting')}") from None


def source_digest(reference: str) -> str:
    """Return the sha256 of the source file of a reference's module.

    Raises:
        UserError: the component cannot be loaded, or its module has no file.
    """
    load(reference)
    with failing(reference):
        file = Path(sys.modules[reference.partition(":")[0]].__file__ or "no file")
        return hashlib.sha256(file.read_bytes()).hexdigest()


@contextmanager
def failing(reference: str) -> Iterator[None]:
    """Report an error of custom code in one line with its place. A script without a guard may exit.

    Errors of an accelerator are raised as they are. They may disappear with more memory or on another device.
    """
    try:
        yield
    except PrometarError:
        raise
    except (Exception, SystemExit) as error:
        if is_of_accelerator(error):
            raise
        last = extract_tb(error.__traceback__)[-1]
        at = f"{Path(last.filename).name}, line {last.lineno}"
        text = " ".join(str(error).split())[:300]
        raise UserError(f"{reference} fails: {type(error).__name__}: {text} ({at})") from error


def component(axis: str, name: str, known: Iterable[str]) -> Any:
    """Return the custom component `name`, made with its default arguments.

    Args:
        axis: What it is, for the message. known: The built-in names, for the message.

    Raises:
        UserError: it is not a reference, or cannot be made.
    """
    if not is_reference(name):
        raise UserError(f"unknown {axis} '{name}': choose one of {', '.join(known)}, or package.module:Name")
    return make(name, {})
