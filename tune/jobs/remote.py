"""A trial's folder, kept at a URL besides: any worker, on any machine, goes on from what lies there."""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path, PurePosixPath

from prometar.errors import StorageError
from prometar.io.files import write_atomically
from prometar.io.stores import Store, is_hidden, reason

# Each of these vouches for the files before it: written after them, read before them.
_LAST = ("checkpoint.safetensors", "result.json")


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


def _ordered(names: Iterator[str] | list[str] | dict[str, bytes]) -> list[str]:
    """Names in the order in which they are to be written."""
    return sorted(names, key=lambda name: (_LAST.index(name) if name in _LAST else -1, name))


def _files(folder: Path) -> Iterator[str]:
    """The folder's files that are a run's own, by name."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not path.is_symlink() and not is_hidden(name):
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
