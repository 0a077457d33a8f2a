"""A small disk of its own: one that is really full, or really read-only."""

import contextlib
import subprocess
from pathlib import Path

MIB = 2**20


class Disk:
    """A small disk of its own: a file system in memory, whose end and write protection are real."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        path.mkdir()
        self._mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path))

    def _mount(self, *args: str) -> None:
        subprocess.run(["mount", *args], check=True, capture_output=True, timeout=30)

    @property
    def _ballast(self) -> Path:
        return self.path / "ballast"

    def fill(self) -> None:
        """Leave not a byte."""
        with contextlib.suppress(OSError), self._ballast.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        self._ballast.unlink()

    def protect(self) -> None:
        """Make it read-only for whoever opens a file from now on."""
        self._mount("--bind", str(self.path), str(self.path))
        self._mount("-o", "remount,bind,ro", str(self.path))

    def unprotect(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True, timeout=30)

    def end(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True, timeout=30)
