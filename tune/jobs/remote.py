"""A trial's folder, kept at a URL besides: any worker, on any machine, goes on from what lies there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path, PurePosixPath

from pyarrow import fs

from prometar.errors import StorageError, WorkError
from prometar.io.files import write_atomically
from prometar.io.stores import filesystem, join, masked, reason

# Each of these vouches for the files before it: written after them, read before them.
_LAST = ("checkpoint.safetensors", "result.json")
_WHOLE = {"s3", "gcs", "abfs"}  # stores that show a file only when all of it is there


class Store:
    """The files below a URL, by names such as "trials/0003/record.json"; every loss of it is one line.

    Args:
        url: s3://bucket/prefix, gs://..., hdfs://..., file:///... or a local folder. Below an object store
            nothing needs to exist yet but the bucket.
    Raises:
        UserError: a URL that pyarrow does not understand.
        WorkError: the store cannot be reached, or refuses; from every method.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._system, root = filesystem(url)
        self._root = root.rstrip("/")

    def read(self, name: str) -> bytes | None:
        """A file's content; None where there is none."""
        with self._reached("read", name):
            try:
                # In one request: several could see several versions.
                with self._system.open_input_file(self._path(name)) as file:
                    return bytes(file.read())
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file so that a reader finds the old one or the new one, whole."""
        path = self._path(name)
        with self._reached("write", name):
            if isinstance(self._system, fs.LocalFileSystem):
                write_atomically(Path(path), content)
            elif self._system.type_name in _WHOLE:
                self._put(path, content)
            else:
                self._replace(path, content)

    def delete(self, name: str) -> None:
        """Remove a file; no error where there is none."""
        with self._reached("delete", name), suppress(FileNotFoundError):
            self._system.delete_file(self._path(name))

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        with self._reached("look for", name):
            return self._system.get_file_info(self._path(name)).type == fs.FileType.File

    def names(self) -> list[str]:
        """All files, sorted, without hidden ones: those are half-written.

        Raises:
            WorkError: also where a listed name would lead out of the folder it is fetched into.
        """
        with self._reached("list"):
            selector = fs.FileSelector(self._root, recursive=True, allow_not_found=True)
            found = [info.path for info in self._system.get_file_info(selector) if info.is_file]
        return sorted(name for name in map(self._name, found) if not _hidden(name))

    def _name(self, path: str) -> str:
        name = path.removeprefix(f"{self._root}/")
        if not is_inside(name):
            raise WorkError(
                f"{masked(self._url)} holds a file named {name!r}, which no run has written there"
            )
        return name

    def _path(self, name: str) -> str:
        assert is_inside(name), name
        return f"{self._root}/{name}"

    def _put(self, path: str, content: bytes) -> None:
        with self._system.open_output_stream(path, compression=None) as stream:
            stream.write(content)

    def _replace(self, path: str, content: bytes) -> None:
        """Where half a file can be seen: write another, and rename it."""
        folder, _, base = path.rpartition("/")
        temporary = f"{folder}/.{base}.{os.getpid()}"
        self._system.create_dir(folder, recursive=True)
        self._put(temporary, content)
        with suppress(FileNotFoundError):
            self._system.delete_file(path)  # HDFS renames over no file
        self._system.move(temporary, path)

    @contextmanager
    def _reached(self, verb: str, name: str = "") -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # Arrow's own errors are one of both
            where = masked(join(self._url, name) if name else self._url)
            raise StorageError(f"cannot {verb} {where}: {reason(error)}") from None


class Mirror:
    """Keeps a local folder and the files below a URL equal: `pull` before a run, `push` after each epoch.

    Whoever reads at the URL while this writes finds no checkpoint that is newer than the files beside it.

    Args:
        url: As for `Store`; the run's own, not the study's.
        folder: The run's folder on this machine, this run's alone.
    Raises:
        WorkError: as `Store`.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._store, self._folder = Store(url), folder
        self._known: dict[str, str] = {}  # what lies at the URL: a file's digest

    def pull(self) -> None:
        """Make the folder what lies at the URL; what an earlier run has left in it goes."""
        fetched = dict[str, bytes]()
        for name in reversed(_ordered(self._store.names())):
            content = self._store.read(name)
            if content is not None:  # it may have been deleted just now
                fetched[name] = content
        with self._usable():
            self._folder.mkdir(parents=True, exist_ok=True)
            _clear(self._folder, keep=set(fetched))
        for name in _ordered(fetched):
            write_atomically(self._folder / name, fetched[name])
        self._known = {name: sha256(content).hexdigest() for name, content in fetched.items()}

    def push(self) -> None:
        """Delete what has gone, and upload what has changed since the last time, the checkpoint last."""
        with self._usable():
            here = _ordered(_files(self._folder))
        for name in set(self._known).difference(here):
            self._store.delete(name)
            del self._known[name]
        for name in here:
            with self._usable():
                content = (self._folder / name).read_bytes()
            if self._known.get(name) != (digest := sha256(content).hexdigest()):
                self._store.write(name, content)
                self._known[name] = digest

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"cannot use {self._folder}: {reason(error)}") from None


def is_inside(name: str) -> bool:
    """Whether a file of this name lies in the folder it is joined to.

    Example:
        >>> is_inside("a/b.json"), is_inside("../b.json"), is_inside("/etc/passwd")
        (True, False, False)
    """
    parts = name.split("/")
    return not {"", ".", ".."}.intersection(parts) and not any(c in name for c in "\\\0")


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _ordered(names: Iterator[str] | list[str] | dict[str, bytes]) -> list[str]:
    """Names in the order in which they are to be written."""
    return sorted(names, key=lambda name: (_LAST.index(name) if name in _LAST else -1, name))


def _files(folder: Path) -> Iterator[str]:
    """The folder's files that are a run's own, by name."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not path.is_symlink() and not _hidden(name):
            yield name


def _clear(folder: Path, keep: set[str]) -> None:
    """Remove what is not to be kept, links first of all: nothing is ever written through one."""
    parents = {str(parent) for name in keep for parent in PurePosixPath(name).parents}
    for path in sorted(folder.rglob("*"), reverse=True):  # a folder's files before the folder
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink():
            if name not in parents:
                path.rmdir()
        elif path.is_symlink() or name not in keep:
            path.unlink()
