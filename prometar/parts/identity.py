"""What a part's code is: the version of its distribution, or a digest of its files."""

import hashlib
from collections.abc import Iterable, Mapping
from functools import cache

from prometar.errors import UserError
from prometar.parts.pieces import Files, files, installed_as, is_ours, piece_of, require_unchanged, top_of
from prometar.parts.reference import load

_DIGITS = 16  # of a digest, in what users read
_TRAINS = {
    "prometar": ("backbone", "bundled", "config", "data", "inference", "methods", "step", "training"),
    "tune": ("jobs", "worker"),
}


def identities(references: Iterable[str]) -> dict[str, str]:
    """What code the parts are, by piece of code: {"mine": "sha256 3f.."} or {"theirs": "theirs 1.2"}.

    Raises:
        UserError: see `pieces`.
    """
    return {piece: identity(piece) for piece in pieces(references)}


def require_same(where: str, references: Iterable[str], recorded: object) -> None:
    """Compare parts with what a record says of their code.

    Raises:
        UserError: a part has changed since, or cannot be loaded.
    """
    known = recorded if isinstance(recorded, Mapping) else {}
    for piece, code in identities(references).items():
        if known.get(piece, code) != code:
            raise UserError(f"{where} was made with another {piece} ({known[piece]}) than this one ({code})")


def pieces(references: Iterable[str]) -> list[str]:
    """The modules and packages that parts are in, sorted: each is told apart, and sent, as a whole.

    Parts that come with this project have its version, and are everywhere.

    Raises:
        UserError: a part that cannot be loaded, whose module has no file, or whose files have changed since
            this process imported them.
    """
    found = set()
    for reference in references:
        load(reference)
        found.add(piece_of(reference.partition(":")[0]))
    theirs = sorted(piece for piece in found if not is_ours(piece))
    for piece in theirs:
        if installed_as(top_of(piece)) is None:
            require_unchanged(piece)
    return theirs


def identity(piece: str) -> str:
    """The version of the distribution that a piece was installed with, or a digest of its files and names."""
    installed = installed_as(top_of(piece))
    if installed is not None:
        return f"{installed.name} {installed.version}"
    return f"sha256 {_digest(files(piece))}"


@cache
def own_code(package: str) -> str:
    """A digest of the code of one of our packages that trains: equal versions may have been changed."""
    folders = tuple(f"{package}/{folder}/" for folder in _TRAINS[package])
    return _digest({name: each for name, each in files(package).items() if name.startswith(folders)})


def _digest(content: Files) -> str:
    state = hashlib.sha256()
    for name, each in sorted(content.items()):
        state.update(f"{name} {len(each)}\n".encode() + each)
    return state.hexdigest()[:_DIGITS]
