"""Parts' code as data, for workers that have it in no folder of theirs."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import ExecutionLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import decode_source, spec_from_loader
from types import ModuleType

from prometar.errors import WorkError
from prometar.parts.identity import identity, pieces
from prometar.parts.pieces import files, installed_as, is_everywhere


@dataclass(frozen=True)
class Sent:
    """A module or package as it is where a study was begun.

    Args:
        piece: Its name. code: Its identity. files: Its sources by path; none of an installed
            distribution, which every machine has to have.
    """

    piece: str
    code: str
    files: Mapping[str, bytes]


def sources_of(references: Iterable[str]) -> tuple[Sent, ...]:
    """The code that these parts are in.

    Raises:
        UserError: see `pieces`.
    """
    return tuple(
        Sent(piece, identity(piece), {} if is_everywhere(piece) else files(piece))
        for piece in pieces(references)
    )


def install(sent: Sequence[Sent]) -> None:
    """Have this process import the parts' modules as they were sent, whatever lies in its own folders.

    Raises:
        WorkError: another version of an installed distribution.
    """
    for each in sent:
        if not each.files:
            _require_version(each)
            continue
        name = each.piece
        loaders = [finder for finder in sys.meta_path if isinstance(finder, _Loader) and finder.piece == name]
        content = dict(each.files)
        if loaders and loaders[0].files == content:
            continue
        for loader in loaders:
            sys.meta_path.remove(loader)
        for module in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
            del sys.modules[module]
        sys.meta_path.insert(0, _Loader(name, content))


def _require_version(sent: Sent) -> None:
    found = installed_as(sent.piece)
    here = f"{found.name} {found.version}" if found else f"no distribution of {sent.piece}"
    if here != sent.code:
        raise WorkError(f"the study has {sent.code}, and a worker's machine {here}: install the same there")


class _Loader(MetaPathFinder, ExecutionLoader):
    """Imports a piece of code from sources in memory."""

    def __init__(self, piece: str, files: dict[str, bytes]) -> None:
        self.piece, self.files = piece, files

    def find_spec(self, name: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        stem = name.replace(".", "/")
        known = any(file == f"{stem}.py" or file.startswith(f"{stem}/") for file in self.files)
        return spec_from_loader(name, self, is_package=self.is_package(name)) if known else None

    def is_package(self, fullname: str) -> bool:
        return f"{fullname.replace('.', '/')}.py" not in self.files

    def get_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ("/__init__.py" if self.is_package(fullname) else ".py")

    def get_source(self, fullname: str) -> str:
        return decode_source(self.files.get(self.get_filename(fullname), b""))  # none of a bare folder
