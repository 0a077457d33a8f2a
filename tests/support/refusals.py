"""A disk that refuses to write. Tests choose the call from which on it refuses."""

import builtins
import errno
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

_NEED_SPACE = frozenset({"mkdir", "open", "write", "fsync"})
_ALL = _NEED_SPACE | {"replace", "unlink"}


@dataclass(frozen=True)
class Fault:
    """A way in which a disk refuses calls.

    Args:
        errno: Error number of refused calls.
        kinds: Kinds of calls that are refused.
        once: True to refuse one call. Otherwise, all calls from this one on are refused.
    """

    errno: int
    kinds: frozenset[str]
    once: bool = False

    @property
    def reason(self) -> str:
        """Message of the error."""
        return os.strerror(self.errno)


FAULTS = {
    "full": Fault(errno.ENOSPC, _NEED_SPACE),
    "read-only": Fault(errno.EROFS, _ALL),
    "forbidden": Fault(errno.EACCES, _ALL - {"write", "fsync"}),
    "failing once": Fault(errno.EIO, _ALL, once=True),
}
"""Faults by name."""


class RefusingDisk:
    """Disk that counts the calls of Python code that write below a folder, and refuses some of them.

    A refused write writes half of its content, as a full disk does.

    Args:
        folder: Folder in which calls are counted.
        patch: Fixture that replaces the functions of Python.
        fault: Way in which calls are refused.
        first: Number of the first refused call, counted from 1 among the calls of the fault's kinds.

    Attributes:
        refused: Refused calls, as (kind, name of the file).
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, fault: Fault, first: int) -> None:
        self._folder = str(folder)
        self._fault = fault
        self._first = first
        self._num_calls = 0
        self.refused: list[tuple[str, str]] = []
        patch.setattr(builtins, "open", self._checked_open(io.open))
        patch.setattr(io, "open", builtins.open)
        for kind in ("mkdir", "replace", "unlink"):
            patch.setattr(os, kind, self._checked(kind, getattr(os, kind)))
        patch.setattr(os, "fsync", self._checked_fsync(os.fsync))

    def _is_here(self, file: Any) -> bool:
        """Return whether a path is below the folder. Open descriptors are not paths."""
        return isinstance(file, str | Path) and str(file).startswith(self._folder)

    def _checked_open(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function like `open` that counts calls for writing, and the writes to their files."""

        def checked(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            can_write = not set("wax+").isdisjoint(mode)
            if not can_write or not self._is_here(file):
                return call(file, mode, *args, **options)
            self._check("open", file)
            return _File(call(file, mode, *args, **options), lambda: self._check("write", file))

        return checked

    def _checked_fsync(self, call: Callable[[int], None]) -> Callable[[int], None]:
        """Return a function like `os.fsync` that counts its calls."""

        def checked(descriptor: int) -> None:
            self._check("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
            call(descriptor)

        return checked

    def _checked(self, kind: str, call: Callable[..., None]) -> Callable[..., None]:
        """Return a function like `os.mkdir`, `os.replace` or `os.unlink` that counts its calls."""

        def checked(path: Any, *args: Any, **options: Any) -> None:
            changes_nothing = kind == "mkdir" and os.path.exists(path)
            if self._is_here(path) and not changes_nothing:
                self._check(kind, path)
            call(path, *args, **options)

        return checked

    def _check(self, kind: str, path: Any) -> None:
        """Count a call.

        Raises:
            OSError: The call is refused.
        """
        if kind not in self._fault.kinds:
            return
        self._num_calls += 1
        is_first = self._num_calls == self._first
        is_later = self._num_calls > self._first
        if is_first or (is_later and not self._fault.once):
            self.refused.append((kind, Path(path).name))
            raise OSError(self._fault.errno, self._fault.reason, str(path))


class _File:
    """An open file that calls `check` before each write."""

    def __init__(self, file: Any, check: Callable[[], None]) -> None:
        self._file = file
        self._check = check

    def write(self, content: Any) -> int:
        try:
            self._check()
        except OSError:
            self._file.write(content[: len(content) // 2])
            raise
        return int(self._file.write(content))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_File":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
