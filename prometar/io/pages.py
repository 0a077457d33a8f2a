"""HTML pages: how all of them look, and that one replaces an earlier one of its kind, and nothing else."""

import os
from functools import cache
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from prometar.errors import UserError
from prometar.io.files import read_bytes, require_utf8

_HEAD = 1000  # bytes that the mark is looked for in


def mark(kind: str) -> str:
    """What says in a page's head which command wrote it.

    Example:
        >>> mark("alignment")
        '<meta name="generator" content="prometar alignment">'
    """
    return f'<meta name="generator" content="prometar {kind}">'


@cache
def templates(package: str) -> Environment:
    """A package's own `templates/`, on top of the page and its style that all share; texts are escaped.

    One for the process, which keeps what it has compiled.
    """
    return Environment(
        loader=ChoiceLoader([PackageLoader(name, "templates") for name in (package, "prometar.io")]),
        autoescape=True,  # names and reasons come from data sets and exceptions
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def require_page_target(path: Path, kind: str, *, option: str = "--to") -> None:
    """Refuse to write a page over anything but an earlier one of its kind.

    Raises:
        UserError: `path` is a folder, or a file that is there and no such page.
    """
    require_target(path, mark(kind), f"page of `prometar {kind}`", option=option)


def require_target(path: Path, sign: str, what: str, *, option: str) -> None:
    """Refuse to write `what` over a file that does not hold its `sign` near the beginning.

    Raises:
        UserError: as `require_page_target`; `option` named the path.
    """
    require_utf8(path)
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder: name a file")
    if os.path.lexists(path) and not _holds(path, sign):
        raise UserError(f"{option} {path} is there already, and no {what}: take a new name")


def _holds(path: Path, sign: str) -> bool:
    try:
        return sign.encode() in read_bytes(path)[:_HEAD]
    except OSError:
        return False
