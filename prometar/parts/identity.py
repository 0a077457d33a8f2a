"""What a part's code is: the version of its distribution, or a digest of its files."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import Distribution, distribution, packages_distributions
from pathlib import Path
from types import ModuleType

from prometar.errors import UserError
from prometar.parts.reference import load

_DIGITS = 16  # of a digest, in what users read
_MOST_BYTES = 4_000_000
_TRAINS = {
    "prometar": ("backbone", "bundled", "config", "data", "inference", "methods", "step", "training"),
    "tune": ("jobs", "worker"),
}
Files = dict[str, bytes]
"""A module's or a package's Python files, by path below the folder it is imported from."""


def identities(references: Iterable[str]) -> dict[str, str]:
    """What code the parts are, by piece of code: {"mine": "sha256 3f.."} or {"theirs": "theirs 1.2"}.

    Raises:
        UserError: a part that cannot be loaded, or whose module has no file.
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
    """
    found = set()
    for reference in references:
        load(reference)
        found.add(piece_of(reference.partition(":")[0]))
    return sorted(piece for piece in found if _top(piece) not in _TRAINS)


def piece_of(module: str) -> str:
    """The outermost package around an imported module; without any `__init__.py`, the module alone.

    All of a distribution is one piece.
    """
    if installed_as(_top(module)):
        return _top(module)
    ends = [k for k, letter in enumerate(f"{module}.") if letter == "."]
    return next((module[:end] for end in ends if _is_file(module[:end])), module)


def _top(module: str) -> str:
    return module.partition(".")[0]


def _is_file(module: str) -> bool:
    found = sys.modules[module]
    file, sent = getattr(found, "__file__", None), _sent(found)
    return file is not None and (sent is None or file in sent)


def _sent(module: ModuleType) -> Mapping[str, bytes] | None:
    """The files that a module was made of, if it was sent to this worker."""
    held = getattr(getattr(module, "__loader__", None), "files", None)
    return held if isinstance(held, Mapping) else None


def identity(piece: str) -> str:
    """The version of the distribution that a piece was installed with, or a digest of its files and names."""
    installed = installed_as(_top(piece))
    if installed is not None:
        return f"{installed.name} {installed.version}"
    return f"sha256 {_digest(files(piece))}"


def files(piece: str) -> Files:
    """All Python files of a package, or a module's.

    Raises:
        UserError: the module has no file.
    """
    module, path = sys.modules[piece], piece.replace(".", "/")
    held, file = _sent(module), module.__file__
    if held is not None:
        return dict(held)
    if file is None or not file.endswith(".py"):
        raise UserError(f"{piece} is no Python file: a part's code must be one, to be kept and sent")
    if Path(file).name == "__init__.py":
        folder = Path(file).parent
        paths = {f"{path}/{each.relative_to(folder).as_posix()}": each for each in folder.rglob("[!.]*.py")}
    else:
        paths = {f"{path}.py": Path(file)}
    if sum(each.stat().st_size for each in paths.values()) > _MOST_BYTES:
        raise UserError(f"{piece} has more than 4 MB of Python files: install it, here and where workers run")
    return {name: each.read_bytes() for name, each in sorted(paths.items())}


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


def is_everywhere(module: str) -> bool:
    """Whether a module is this project's, or installed: workers have it."""
    return _top(module) in _TRAINS or installed_as(_top(module)) is not None


@cache
def installed_as(top: str) -> Distribution | None:
    """What installed a top-level module; None where its files are the user's to edit."""
    names = packages_distributions().get(top, [])
    if not names:
        return None
    found, module = distribution(names[0]), import_module(top)
    if json.loads(found.read_text("direct_url.json") or "{}").get("dir_info", {}).get("editable"):
        return None
    places = [Path(place) for place in (module.__file__, *getattr(module, "__path__", ())) if place]
    root = Path(str(found.locate_file("")))
    return found if any(place.is_relative_to(root) for place in places) else None
