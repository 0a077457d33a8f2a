"""HTML pages whose place a user names: a page replaces an earlier one of its kind, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

from prometar.errors import UserError
from prometar.io.files import read_bytes

_HEAD = 1000  # bytes that the mark is looked for in


def mark(kind: str) -> str:
    """What says in a page's head which command wrote it.

    Example:
        >>> mark("alignment")
        '<meta name="generator" content="prometar alignment">'
    """
    return f'<meta name="generator" content="prometar {kind}">'


def require_page_target(path: Path, kind: str) -> None:
    """Refuse to write a page over anything but an earlier one of its kind.

    Raises:
        UserError: `path` is a folder, or a file that is there and no such page.
    """
    if path.is_dir():
        raise UserError(f"--to {path} is a folder: name a file")
    if os.path.lexists(path) and not _written(path, kind):
        raise UserError(f"--to {path} is there already, and no page of `prometar {kind}`: take a new name")


def _written(path: Path, kind: str) -> bool:
    try:
        return mark(kind).encode() in read_bytes(path)[:_HEAD]
    except OSError:
        return False
