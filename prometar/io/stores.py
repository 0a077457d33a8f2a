"""Files below a local folder or a URL, through pyarrow's file systems."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyarrow import fs

from prometar.errors import StorageError, UserError
from prometar.io.files import beside, require_utf8, write_atomically

_SECRET = r"password|passwd|pwd|secret|account_key|token|sig(?=\b|nature)"  # names of options of a URL
_WHOLE = {"s3", "gcs", "abfs"}  # stores that show a file only when it is complete
# Arrow's error for a refusal that is longer than the file. A lasting refusal fails earlier.
_LONGER_THAN_FILE = "Failed to flush response stream"
_PAUSES = (1.0, 2.0, 4.0)  # seconds


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the pyarrow file system of a local path or URI, and the path in it.

    Raises:
        UserError: pyarrow does not understand the URI. StorageError: the store cannot be reached.
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


def join(root: str | Path, name: str) -> str:
    """Return `name` below a local folder or a URI. Options of the URI stay at its end.

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
    """Return the message of an error in one line, without passwords."""
    return masked(" ".join(str(error).split())) or type(error).__name__


def masked(text: str) -> str:
    """Return text with the passwords and secret keys of its URLs hidden.

    Example:
        >>> masked("postgresql://me:secret@host/db"), masked("s3://key:se/cret@bucket/data")
        ('postgresql://me:***@host/db', 's3://key:***@bucket/data')
        >>> masked("postgresql://me@host/db?password=secret&sslmode=require")
        'postgresql://me@host/db?password=***&sslmode=require'
    """
    text = re.sub(r"(://[^:/@\s]*):[^@\s]+@", r"\1:***@", text)
    return re.sub(rf"([?&][\w.-]*(?:{_SECRET})[\w.-]*=)[^&\s'\"]+", r"\1***", text, flags=re.IGNORECASE)


def is_hidden(name: str) -> bool:
    """Return True for names of incomplete files and their folders."""
    return any(part.startswith(".") for part in name.split("/"))


class Store:
    """Files of one folder by name.

    Args:
        url: A local folder, s3://bucket/prefix, gs://... or hdfs://...
    Raises:
        UserError: pyarrow does not understand the URL. StorageError: from every method, the store failed.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._system, root = filesystem(url)
        self._root = root.rstrip("/")

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if there is none."""
        with self._one_line_errors("read", name):
            for pause in _PAUSES:
                try:
                    return self._content(name)
                except OSError as error:
                    if _LONGER_THAN_FILE not in str(error):
                        raise
                time.sleep(pause)
            return self._content(name)

    def write(self, name: str, content: bytes) -> None:
        """Write a file so that a reader finds the old or the new one, complete."""
        path = f"{self._root}/{name}"
        with self._one_line_errors("write", name):
            if isinstance(self._system, fs.LocalFileSystem):
                write_atomically(Path(path), content)
            elif self._system.type_name in _WHOLE:
                self._put(path, content)
            else:
                temporary = f"{self._root}/{beside(name)}"
                self._system.create_dir(self._root, recursive=True)
                self._put(temporary, content)
                with suppress(FileNotFoundError):
                    self._system.delete_file(path)  # HDFS does not rename over a file
                self._system.move(temporary, path)

    def _content(self, name: str) -> bytes | None:
        try:
            with self._system.open_input_file(f"{self._root}/{name}") as file:  # one request: one version
                return bytes(file.read())
        except FileNotFoundError:
            return None

    def _put(self, path: str, content: bytes) -> None:
        with self._system.open_output_stream(path, compression=None) as stream:
            stream.write(content)

    @contextmanager
    def _one_line_errors(self, verb: str, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # Arrow's errors are one of both
            raise StorageError(f"cannot {verb} {masked(join(self._url, name))}: {reason(error)}") from None
