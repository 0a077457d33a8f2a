"""Reading and writing files in a store (a local folder or a URI) with pyarrow's file systems."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import fs

from prometar.errors import InfrastructureError, UserError
from prometar.io.files import read_bytes, require_recordable, write_atomically

_SECRET_NAMES = r"password|passwd|pwd|secret|account_key|token|sig(?=\b|nature)"  # in names of URL parameters


def filesystem_and_path(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the pyarrow file system of a local path or URI, and the path in this file system.

    Raises:
        UserError: pyarrow does not support the URI, or the path is not UTF-8.
        InfrastructureError: the store cannot be reached.
    """
    require_recordable(uri)
    if "://" not in uri:
        return fs.LocalFileSystem(), str(Path(uri).absolute())
    try:
        system, path = fs.FileSystem.from_uri(uri)
    except ValueError as error:
        raise UserError(
            f"Cannot open '{masked(uri)}': {masked_message(error)}. Pass a folder, s3://... or gs://..."
        ) from None
    except OSError as error:
        raise InfrastructureError(f"Cannot open {masked(uri)}: {masked_message(error)}.") from None
    return system, path.rstrip("/")


def read_file(folder: str, name: str) -> bytes | None:
    """Return the content of a file below a local folder or URI, or None if the file does not exist.

    Raises:
        UserError: pyarrow does not support the URI.
        InfrastructureError: the store failed.
    """
    system, path = filesystem_and_path(folder)
    with _convert_store_errors("read", join(folder, name)):
        try:
            if isinstance(system, fs.LocalFileSystem):
                return read_bytes(Path(path, name))
            with system.open_input_file(f"{path}/{name}") as file:
                return bytes(file.read())
        except FileNotFoundError:
            return None


def write_file(folder: str, name: str, content: bytes) -> None:
    """Write a file below a local folder or URI. Readers never see a partially written file.

    Raises:
        UserError: pyarrow does not support the URI.
        InfrastructureError: the store failed.
    """
    system, path = filesystem_and_path(folder)
    if isinstance(system, fs.LocalFileSystem):
        write_atomically(Path(path, name), content)
    else:
        with _convert_store_errors("write", join(folder, name)):
            stream = system.open_output_stream(f"{path}/{name}", compression=None)
            stream.write(content)
            stream.close()


@contextmanager
def _convert_store_errors(verb: str, uri: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # Arrow's errors derive from one of them
        raise InfrastructureError(f"cannot {verb} {masked(uri)}: {masked_message(error)}.") from None


def join(root: str | Path, name: str) -> str:
    """Append `name` to a local folder or URI. The query string of a URI remains at the end.

    Example:
        >>> join("s3://bucket/data?region=eu-west-1", "dtd")
        's3://bucket/data/dtd?region=eu-west-1'
    """
    if "://" not in f"{root}":
        return str(Path(root, name))
    scheme, _, path = f"{root}".partition("://")
    path, question, query = path.partition("?")
    return f"{scheme}://{path.rstrip('/')}/{name}{question}{query}"


def masked_message(error: Exception) -> str:
    """Return an error's message on one line, with secrets masked and without the final period."""
    return masked(" ".join(str(error).split())).rstrip(".") or type(error).__name__


def masked(text: str) -> str:
    """Mask passwords and secret keys in the URLs of a text.

    Example:
        >>> masked("postgresql://me:secret@host/db"), masked("s3://key:se/cret@bucket/data")
        ('postgresql://me:***@host/db', 's3://key:***@bucket/data')
        >>> masked("postgresql://me@host/db?password=secret&sslmode=require")
        'postgresql://me@host/db?password=***&sslmode=require'
    """
    text = re.sub(r"(://[^:/@\s]*):[^@\s]+@", r"\1:***@", text)
    return re.sub(rf"([?&][\w.-]*(?:{_SECRET_NAMES})[\w.-]*=)[^&\s'\"]+", r"\1***", text, flags=re.IGNORECASE)
