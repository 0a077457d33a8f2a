"""A disk that refuses: each call that writes below a folder can be the one where it begins to."""

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

_NEW = frozenset({"mkdir", "open", "write", "fsync"})
_ALL = _NEW | {"replace", "unlink"}


@dataclass(frozen=True)
class Fault:
    """Why calls are refused, which kinds of them, and whether only one is (else: all from the first on)."""

    errno: int
    kinds: frozenset[str]
    once: bool = False

    @property
    def reason(self) -> str:
        return os.strerror(self.errno)


FAULTS = {
    "full": Fault(errno.ENOSPC, _NEW),
    "read-only": Fault(errno.EROFS, _ALL),
    "forbidden": Fault(errno.EACCES, _ALL - {"write", "fsync"}),
    "ill": Fault(errno.EIO, _ALL, once=True),
}


class RefusingDisk:
    """Counts the calls that write below `folder`, whoever makes them in Python, and refuses some.

    These are the call of number `first` (1-based) and, but for `once`, all after it. A write that is refused
    leaves half of what was to be written, as a full disk does.

    Attributes:
        refused: The calls that were refused, as (kind, file's name).
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, fault: Fault, first: int) -> None:
        self._folder = str(folder)
        self._fault = fault
        self._first = first
        self._num_calls = 0
        self.refused: list[tuple[str, str]] = []
        opened = io.open

        def open_(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            if not set("wax+") & set(mode) or not self._is_here(file):
                return opened(file, mode, *args, **options)
            self._check("open", file)
            return _File(opened(file, mode, *args, **options), lambda: self._check("write", file))

        patch.setattr(io, "open", open_)
        patch.setattr(builtins, "open", open_)
        for kind in ("mkdir", "replace", "unlink"):
            patch.setattr(os, kind, self._checked(kind, getattr(os, kind)))
        synced = os.fsync

        def fsync(handle: int) -> None:
            self._check("fsync", os.readlink(f"/proc/self/fd/{handle}"))
            synced(handle)

        patch.setattr(os, "fsync", fsync)

    def _is_here(self, file: Any) -> bool:
        return isinstance(file, str | Path) and str(file).startswith(self._folder)

    def _checked(self, kind: str, call: Callable[..., None]) -> Callable[..., None]:
        def checked(path: Any, *args: Any, **options: Any) -> None:
            if self._is_here(path) and not (kind == "mkdir" and os.path.exists(path)):
                self._check(kind, path)
            call(path, *args, **options)

        return checked

    def _check(self, kind: str, path: Any) -> None:
        if kind not in self._fault.kinds:
            return
        self._num_calls += 1
        if self._num_calls == self._first or (self._num_calls > self._first and not self._fault.once):
            self.refused.append((kind, Path(path).name))
            raise OSError(self._fault.errno, self._fault.reason, str(path))


class _File:
    """An open file that asks before it writes."""

    def __init__(self, file: Any, ask: Callable[[], None]) -> None:
        self._file = file
        self._ask = ask

    def write(self, content: Any) -> int:
        try:
            self._ask()
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
