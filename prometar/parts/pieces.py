"""The piece of code that a part is in: its files, as this process imported them."""

import json
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import Distribution, distribution, distributions, packages_distributions
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from weakref import WeakKeyDictionary

from prometar.errors import UserError

_MOST_BYTES = 4_000_000
_OURS = ("prometar", "tune")
Files = dict[str, bytes]
"""A module's or a package's Python files, by path below the folder it is imported from."""
_imported: WeakKeyDictionary[ModuleType, Files] = WeakKeyDictionary()


def piece_of(module: str) -> str:
    """The outermost package around an imported module; without any `__init__.py`, the module alone.

    All of a distribution is one piece.
    """
    if installed_as(top_of(module)):
        return top_of(module)
    ends = [k for k, letter in enumerate(f"{module}.") if letter == "."]
    return next((module[:end] for end in ends if _is_file(module[:end])), module)


def top_of(module: str) -> str:
    """The name of the package at its top.

    Example:
        >>> top_of("prometar.parts.pieces")
        'prometar'
    """
    return module.partition(".")[0]


def _is_file(module: str) -> bool:
    found = sys.modules[module]
    file, sent = getattr(found, "__file__", None), _sent(found)
    return file is not None and (sent is None or file in sent)


def _sent(module: ModuleType) -> Mapping[str, bytes] | None:
    """The files that a module was made of, if it was sent to this worker."""
    held = getattr(getattr(module, "__loader__", None), "files", None)
    return held if isinstance(held, Mapping) else None


def files(piece: str) -> Files:
    """All Python files of a package, or a module's, as they were when its first part was loaded.

    Python goes on with the code that it has imported, whatever its files become: what is recorded and sent
    must be that.

    Raises:
        UserError: the module has no file.
    """
    module = sys.modules[piece]
    held = _sent(module)
    if held is not None:
        return dict(held)
    if module not in _imported:
        _imported[module] = _read(piece, module)
    return _imported[module]


def require_unchanged(piece: str) -> None:
    """
    Raises:
        UserError: its files are no longer those that this process has imported.
    """
    module, held = sys.modules[piece], files(piece)
    if _sent(module) is None and (found := _read(piece, module)) != held:
        changed = min(name for name in held.keys() | found.keys() if held.get(name) != found.get(name))
        raise UserError(
            f"{changed} has changed since this process imported it: "
            "restart Python (in a notebook: its kernel)"
        )


def _read(piece: str, module: ModuleType) -> Files:
    file, path = module.__file__, piece.replace(".", "/")
    if file is None or not (file.endswith(".py") and Path(file).is_file()):
        raise UserError(f"{piece} is no Python file: a part's code must be one, to be kept and sent")
    if Path(file).name == "__init__.py":
        folder = Path(file).parent
        found = {each.relative_to(folder): each for each in folder.rglob("*.py")}
        # editors and environments keep copies in hidden folders
        seen = {name: each for name, each in found.items() if not any(p.startswith(".") for p in name.parts)}
        paths = {f"{path}/{name.as_posix()}": each for name, each in seen.items()}
    else:
        paths = {f"{path}.py": Path(file)}
    if sum(each.stat().st_size for each in paths.values()) > _MOST_BYTES:
        raise UserError(f"{piece} has more than 4 MB of Python files: install it, here and where workers run")
    return {name: each.read_bytes() for name, each in sorted(paths.items())}


def is_ours(module: str) -> bool:
    """Whether a module comes with this project."""
    return top_of(module) in _OURS


def is_everywhere(module: str) -> bool:
    """Whether a module is this project's, or installed: workers have it."""
    return is_ours(module) or installed_as(top_of(module)) is not None


@cache
def installed_as(top: str) -> Distribution | None:
    """What installed a top-level module; None where its files are the user's to edit."""
    roots = {Path(str(each.locate_file(""))) for each in distributions()}
    if not _lies_in(roots, top):  # else what each package has installed is read: a second
        return None
    names = packages_distributions().get(top, [])
    if not names:
        return None
    found = distribution(names[0])
    if json.loads(found.read_text("direct_url.json") or "{}").get("dir_info", {}).get("editable"):
        return None
    return found if _lies_in({Path(str(found.locate_file("")))}, top) else None


def _lies_in(roots: Iterable[Path], top: str) -> bool:
    """Whether a top-level module lies below one of the folders; it need not be imported, nor be there."""
    module = sys.modules.get(top)
    if module is not None:
        found = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    else:
        spec = find_spec(top)
        found = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
    places = [Path(place) for place in found if place]
    return any(place.is_relative_to(root) for place in places for root in roots)
