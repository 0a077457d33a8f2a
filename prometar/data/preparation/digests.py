"""Digests of downloaded files: computed, kept beside a file on first use, compared later."""

import hashlib
from pathlib import Path

from prometar.io.files import write_atomically


def digest_of(file: Path, kind: str = "sha256") -> str:
    """Hex digest of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


def keep_digest(file: Path, digest: str) -> None:
    """Write `<file>.sha256`, as sha256sum writes it; `file` need not be there yet."""
    write_atomically(_record(file), f"{digest}  {file.name}\n".encode())


def change_of(file: Path, digest: str | None = None) -> str:
    """What is wrong with a file whose digest was kept; "" if nothing is, or none was.

    `digest`: of the file, if it is known.
    """
    if not file.exists() or not _record(file).exists():
        return ""
    kept, found = _record(file).read_text("utf-8", "replace").partition(" ")[0], digest or digest_of(file)
    if kept == found:
        return ""
    return (
        f"{file} has changed since it was downloaded: its sha256 is {found}, {_record(file).name} says {kept}"
    )


def _record(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")
