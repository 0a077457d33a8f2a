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

from prometar.errors import UserError
from prometar.parts.reference import load

_DIGITS = 16  # of a digest, in what users read
_MOST_BYTES = 4_000_000
_OURS = {"prometar", "tune"}
Files = dict[str, bytes]
"""A module's or a package's Python files, by path below the folder it is imported from."""


def identities(references: Iterable[str]) -> dict[str, str]:
    """What code the parts are, by top-level module: {"mine": "sha256 3f.."} or {"theirs": "theirs 1.2"}.

    Raises:
        UserError: a part that cannot be loaded, or whose module has no file.
    """
    return {top: identity(top, module) for top, module in tops(references).items()}


def require_same(where: str, references: Iterable[str], recorded: object) -> None:
    """Compare parts with what a record says of their code.

    Raises:
        UserError: a part has changed since, or cannot be loaded.
    """
    known = recorded if isinstance(recorded, Mapping) else {}
    for top, code in identities(references).items():
        if known.get(top, code) != code:
            raise UserError(f"{where} was made with another {top} ({known[top]}) than this one ({code})")


def tops(references: Iterable[str]) -> dict[str, str]:
    """The top-level modules that parts are in, sorted, each with one of the modules asked for.

    Parts that come with this project have its version, and are everywhere.
    """
    found: dict[str, str] = {}
    for reference in sorted(references):
        load(reference)
        name = reference.partition(":")[0]
        found.setdefault(name.partition(".")[0], name)
    return {top: name for top, name in found.items() if top not in _OURS}


def identity(top: str, module: str) -> str:
    """The version of the distribution that `top` was installed with, or the digest of its files."""
    installed = installed_as(top)
    if installed is not None:
        return f"{installed.name} {installed.version}"
    return f"sha256 {digest(files(top, module))[:_DIGITS]}"


def files(top: str, module: str) -> Files:
    """All Python files of a package; of a module, or of a package without __init__.py, the one asked for.

    Raises:
        UserError: the module has no file.
    """
    held = getattr(getattr(sys.modules[top], "__loader__", None), "files", None)
    if isinstance(held, Mapping):  # sent to this worker
        return dict(held)
    file = sys.modules[top].__file__
    if file is not None and Path(file).name == "__init__.py":
        folder = Path(file).parent
        paths = {f"{top}/{path.relative_to(folder).as_posix()}": path for path in folder.rglob("*.py")}
    else:
        file = sys.modules[module].__file__
        if file is None or not file.endswith(".py"):
            raise UserError(f"{module} is no Python file: a part's code must be one, to be kept and sent")
        last = "/__init__.py" if Path(file).name == "__init__.py" else ".py"
        paths = {module.replace(".", "/") + last: Path(file)}
    if sum(path.stat().st_size for path in paths.values()) > _MOST_BYTES:
        raise UserError(f"{top} has more than 4 MB of Python files: install it, here and where workers run")
    return {name: path.read_bytes() for name, path in sorted(paths.items())}


def digest(files: Files) -> str:
    """sha256 (hex) of files and their names."""
    state = hashlib.sha256()
    for name, content in sorted(files.items()):
        state.update(f"{name} {len(content)}\n".encode() + content)
    return state.hexdigest()


def is_everywhere(top: str) -> bool:
    """Whether a top-level module is this project's, or installed: workers have it."""
    return top in _OURS or installed_as(top) is not None


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
