"""Sources of encoded images: a folder, or the renderer."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from prometar.bundled.suite import SUITE
from prometar.errors import UserError
from prometar.io.files import read_bytes


@dataclass(frozen=True)
class FolderSource:
    """Image files below a folder, as a benchmark is unpacked."""

    folder: str

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        return [self._read(Path(self.folder, path)) for path in paths]

    def _read(self, file: Path) -> bytes:
        try:
            return read_bytes(file)
        except OSError as error:
            raise UserError(
                f"cannot read image {file} ({error.strerror}): "
                "restore it, or pass --data-root with a complete copy"
            ) from None


@dataclass(frozen=True)
class RenderedSource:
    """The rendered dataset `name`. Images are rendered as PNG files when they are read."""

    name: str

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        return [_rendered(self.name, path) for path in paths]


@lru_cache(maxsize=1024)
def _rendered(name: str, path: str) -> bytes:
    """Render an image once per process (about 10 KiB each), since every epoch reads it again."""
    return SUITE[name].encode(path)
