"""Reading and writing files in a store (a local folder or a URI) with pyarrow's file systems."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import fs

from prometar.errors import InfrastructureError, UserError
from prometar.io.files import read_bytes, require_recordable, write_atomically

_USER_AND_PASSWORD = re.compile(r"(://[^:/@\s]*):[^@\s]+@")
# A parameter of a URL is secret if its name contains one of these words.
_SECRET_NAMES = r"password|passwd|pwd|secret|account_key|token|sig(?=\b|nature)"
_SECRET_PARAMETER = re.compile(rf"([?&][\w.-]*(?:{_SECRET_NAMES})[\w.-]*=)[^&\s'\"]+", re.IGNORECASE)


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
    """Return the content of a file in a local folder or URI, or None if the file does not exist.

    Raises:
        UserError: pyarrow does not support the URI, or the path is not UTF-8.
        InfrastructureError: the file cannot be read, or the store cannot be reached.
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
    """Write a file to a local folder or URI. Readers never see a partially written file.

    Raises:
        UserError: pyarrow does not support the URI, or the path is not UTF-8.
        InfrastructureError: the file cannot be written, or the store cannot be reached.
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
    """Convert errors of pyarrow's file systems into an InfrastructureError.

    Args:
        verb: What the `with` block does with the file, such as "read".
        uri: Path or URI of the file.
    """
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
    scheme, separator, rest = str(root).partition("://")
    if not separator:
        return str(Path(root, name))
    path, question_mark, query = rest.partition("?")
    return f"{scheme}://{path.rstrip('/')}/{name}{question_mark}{query}"


def masked_message(error: Exception) -> str:
    """Return an error's message on one line, with secrets masked and without the final period.

    If the message is empty, return the name of the error's class.
    """
    message = " ".join(str(error).split())
    return masked(message).rstrip(".") or type(error).__name__


def masked(text: str) -> str:
    """Return a text with `***` in place of the passwords and secret keys in its URLs.

    Example:
        >>> masked("postgresql://me:secret@host/db"), masked("s3://key:se/cret@bucket/data")
        ('postgresql://me:***@host/db', 's3://key:***@bucket/data')
        >>> masked("postgresql://me@host/db?password=secret&sslmode=require")
        'postgresql://me@host/db?password=***&sslmode=require'
    """
    text = _USER_AND_PASSWORD.sub(r"\1:***@", text)
    return _SECRET_PARAMETER.sub(r"\1***", text)
