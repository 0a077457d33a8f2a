"""What `package.module:Name` names. A module is imported here alone, and only when its part is asked for."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module, invalidate_caches
from importlib.metadata import entry_points
from pathlib import Path
from traceback import extract_tb
from typing import Any

from prometar.errors import UserError, is_of_accelerator
from prometar.parts.pieces import files, is_everywhere, piece_of

GROUP = "prometar.parts"
"""Entry points of installed packages: `AXIS.NAME = "package.module:Name"`, such as `regularizer.huber`."""
_REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


def reference_of(axis: str, kind: str) -> str | None:
    """`package.module:Name`, given as such or by an installed package's name for it; None of neither.

    Example:
        >>> [reference_of("regularizer", kind) for kind in ("mine:Huber", "l1", "a/b.py:Huber")]
        ['mine:Huber', None, None]
    """
    return kind if _REFERENCE.fullmatch(kind) else _installed().get(f"{axis}.{kind}")


@cache
def _installed() -> dict[str, str]:
    return {found.name: found.value.replace(" ", "") for found in entry_points(group=GROUP)}


def load(reference: str) -> Any:
    """What a reference names.

    Raises:
        UserError: no such module, one that fails when it is imported, or one without that name.

    Example:
        >>> load("prometar.methods.regularizers:l1").__name__
        'l1'
    """
    name, _, attribute = reference.partition(":")
    if name == "__main__" or name.partition(".")[0] in sys.stdlib_module_names:
        raise UserError(f"{reference}: a part needs a file of its own, which workers can be sent")
    if name not in sys.modules:
        invalidate_caches()  # its file may be younger than what Python remembers of its folder
    with failing(reference, kinds=(Exception, SystemExit)):  # a script without a guard ends Python
        try:
            module = import_module(name)
        except ModuleNotFoundError as error:
            ours = f"{name}.".startswith(f"{error.name}.")  # it, or a package that it is in
            where = "is its folder on PYTHONPATH?" if ours else "its own import fails"
            raise UserError(f"{reference}: there is no module '{error.name}': {where}") from None
    if not is_everywhere(name):
        files(piece_of(name))  # keeps what has been imported, before anyone edits it
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise UserError(f"{reference}: {module.__file__ or name} has no '{attribute}'") from None


@contextmanager
def failing(
    reference: str,
    *,
    but: tuple[type[Exception], ...] = (UserError,),
    kinds: tuple[type[BaseException], ...] = (Exception,),
) -> Iterator[None]:
    """Tell an error of a user's own code in one line, with its place; `but` kinds that are meant to pass.

    A GPU's pass too: with another share of it the code may run, and its process may be the worse for it.
    """
    try:
        yield
    except but:
        raise
    except kinds as error:
        if is_of_accelerator(error):
            raise
        last = extract_tb(error.__traceback__)[-1]
        at = f"{Path(last.filename).name}, line {last.lineno}"
        text = " ".join(str(error).split())[:300]
        raise UserError(f"{reference} fails: {type(error).__name__}: {text} ({at})") from error
