"""A small disk that can really be full or read-only."""

import contextlib
import subprocess
from pathlib import Path

MIB = 2**20


class Disk:
    """A small file system in memory (tmpfs), which is mounted at a new folder. It requires root.

    Args:
        path: Folder to create.
        size: Size in bytes.

    Raises:
        FileExistsError: `path` exists.
        CalledProcessError: the system refuses to mount a file system.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        path.mkdir()
        self._mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path))

    def _mount(self, *args: str) -> None:
        subprocess.run(["mount", *args], check=True, capture_output=True, timeout=30)

    def _unmount(self) -> None:
        # Lazily, because processes may still have files of the disk open.
        subprocess.run(["umount", "--lazy", str(self.path)], check=True, timeout=30)

    @property
    def _ballast(self) -> Path:
        """File that fills the disk."""
        return self.path / "ballast"

    def fill(self) -> None:
        """Fill the disk until no byte is free."""
        with contextlib.suppress(OSError), self._ballast.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        """Free the space that `fill` has used."""
        self._ballast.unlink()

    def protect(self) -> None:
        """Make the disk read-only for processes that open a file from now on."""
        # The bind mount covers the disk with a second view of it, which `unprotect` removes. A bind mount
        # ignores "ro", so a remount makes this view read-only.
        self._mount("--bind", str(self.path), str(self.path))
        self._mount("-o", "remount,bind,ro", str(self.path))

    def unprotect(self) -> None:
        """Make the disk writable again."""
        self._unmount()  # the mount of `protect`

    def end(self) -> None:
        """Unmount the disk. Its content is lost."""
        self._unmount()
