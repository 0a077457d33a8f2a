"""Where files lie besides this machine: every file system that pyarrow knows, by URL."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyarrow import fs

from prometar.errors import StorageError, UserError, WorkError
from prometar.io.files import beside, require_utf8, write_atomically

_SECRET = r"password|passwd|pwd|secret|account_key|token|sig(?=\b|nature)"  # in names of a URL's options
_BUCKETS = {"s3", "gs", "gcs", "abfs", "abfss"}
_WHOLE = {"s3", "gcs", "abfs"}  # stores that show a file only when all of it is there
# What Arrow says of a refusal that is longer than the file: it has not fit in there, and is not tried
# again. A lasting one comes before, where the file's size is asked for.
_LONGER_THAN_FILE = "Failed to flush response stream"
_PAUSES = (1.0, 2.0, 4.0)  # seconds


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The pyarrow file system of a local path or URI, and the path in it.

    Raises:
        UserError: a URI that pyarrow does not understand, a path that is not UTF-8, or meant as a URL.
        StorageError: a store that cannot be reached, such as one that is asked for its region.
    """
    require_utf8(uri)
    if "://" not in uri:
        return fs.LocalFileSystem(), str(Path(uri).absolute())
    try:
        return fs.FileSystem.from_uri(uri)
    except ValueError as error:
        raise UserError(
            f"cannot open '{masked(uri)}': {reason(error)}; expected a folder, s3://... or gs://..."
        ) from None
    except OSError as error:
        raise StorageError(f"cannot open {masked(uri)}: {reason(error)}") from None


def require_bucket(uri: str) -> None:
    """What can be told of a URI without asking anybody.

    Raises:
        UserError: it names no bucket where there must be one.
    """
    scheme, _, rest = uri.partition("://")
    if scheme in _BUCKETS and not rest.partition("/")[0].partition("?")[0]:
        raise UserError(f"cannot open '{masked(uri)}': it names no bucket")


def join(root: str | Path, name: str) -> str:
    """`name` below a local folder or a URI, whose options (?region=...) stay at its end.

    Example:
        >>> join("s3://bucket/data?region=eu-west-1", "dtd")
        's3://bucket/data/dtd?region=eu-west-1'
    """
    if "://" not in f"{root}":
        return str(Path(root, name))
    scheme, _, path = f"{root}".partition("://")
    path, question, options = path.partition("?")
    return f"{scheme}://{path.rstrip('/')}/{name}{question}{options}"


def reason(error: Exception) -> str:
    """What an error says, in one line."""
    return masked(" ".join(str(error).split())) or type(error).__name__


def masked(text: str) -> str:
    """Text with the passwords of its URLs hidden: those of databases, and the secret keys of stores.

    Example:
        >>> masked("postgresql://me:secret@host/db"), masked("s3://key:se/cret@bucket/data")
        ('postgresql://me:***@host/db', 's3://key:***@bucket/data')
        >>> masked("postgresql://me@host/db?password=secret&sslmode=require")
        'postgresql://me@host/db?password=***&sslmode=require'
    """
    text = re.sub(r"(://[^:/@\s]*):[^@\s]+@", r"\1:***@", text)
    return re.sub(rf"([?&][\w.-]*(?:{_SECRET})[\w.-]*=)[^&\s'\"]+", r"\1***", text, flags=re.IGNORECASE)


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
            for pause in _PAUSES:
                try:
                    return self._content(name)
                except OSError as error:
                    if _LONGER_THAN_FILE not in str(error):
                        raise
                time.sleep(pause)
            return self._content(name)

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
        return sorted(name for name in map(self._name, found) if not is_hidden(name))

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

    def _content(self, name: str) -> bytes | None:
        try:
            # In one request: several could see several versions.
            with self._system.open_input_file(self._path(name)) as file:
                return bytes(file.read())
        except FileNotFoundError:
            return None

    def _put(self, path: str, content: bytes) -> None:
        with self._system.open_output_stream(path, compression=None) as stream:
            stream.write(content)

    def _replace(self, path: str, content: bytes) -> None:
        """Where half a file can be seen: write another, and rename it."""
        folder, _, base = path.rpartition("/")
        temporary = f"{folder}/{beside(base)}"
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


def is_inside(name: str) -> bool:
    """Whether a file of this name lies in the folder it is joined to.

    Example:
        >>> is_inside("a/b.json"), is_inside("../b.json"), is_inside("/etc/passwd")
        (True, False, False)
    """
    parts = name.split("/")
    return not {"", ".", ".."}.intersection(parts) and not any(c in name for c in "\\\0")


def is_hidden(name: str) -> bool:
    """Whether a file, or a folder that it is in, has a name of those that are half-written."""
    return any(part.startswith(".") for part in name.split("/"))
