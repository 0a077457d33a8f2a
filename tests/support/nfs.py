"""What NFS does otherwise than a disk: a file that is removed while it is open stays until it is closed."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest


def like_nfs(patch: pytest.MonkeyPatch) -> None:
    """Have `os.unlink` and `os.rmdir`, and with them all that removes files in Python, do so here."""
    unlink, rmdir = os.unlink, os.rmdir

    def hide(path: Any, *, dir_fd: int | None = None) -> None:
        found = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
        if (found.st_dev, found.st_ino) not in _open():
            return unlink(path, dir_fd=dir_fd)
        hidden = Path(os.fsdecode(path)).with_name(f".nfs{found.st_ino:016x}")
        return os.rename(path, hidden, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)

    def remove(path: Any, *, dir_fd: int | None = None) -> None:
        folder = Path(os.fsdecode(path))
        for hidden in (folder if dir_fd is None else Path(f"/proc/self/fd/{dir_fd}", folder)).glob(".nfs*"):
            if (hidden.stat().st_dev, hidden.stat().st_ino) not in _open():
                unlink(hidden)
        rmdir(path, dir_fd=dir_fd)

    patch.setattr(os, "unlink", hide)
    patch.setattr(os, "rmdir", remove)


def _open() -> set[tuple[int, int]]:
    """Files that this process has open, by device and number."""
    return set(_numbers())


def _numbers() -> Iterator[tuple[int, int]]:
    for each in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the one by which this folder is read
            found = each.stat()
            yield found.st_dev, found.st_ino
