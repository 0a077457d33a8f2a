"""Where files lie besides this machine: every file system that pyarrow knows, by URL."""

from __future__ import annotations

import re
from pathlib import Path

from pyarrow import fs

from prometar.errors import StorageError, UserError
from prometar.io.files import require_utf8

_SECRET = r"password|passwd|pwd|secret|account_key|token|sig(?=\b|nature)"  # in names of a URL's options
_BUCKETS = {"s3", "gs", "gcs", "abfs", "abfss"}


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The pyarrow file system of a local path or URI, and the path in it.

    Raises:
        UserError: a URI that pyarrow does not understand, or a path that is not UTF-8.
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
