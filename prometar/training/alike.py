"""Whether the machine of a worker has what the driver has: then its figures are of the same things."""

import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from prometar.errors import StorageError, UserError, one_line

_UNKNOWN = re.compile(r"(Can't get attribute '.*' on <module|No module named) '(prometar|tune)\b")


def is_of_other_code(reason: str) -> bool:
    """Whether a worker's error says that it could not even read what it was sent.

    Example:
        >>> is_of_other_code("ModuleNotFoundError: No module named 'tune.worker'")
        True
    """
    return _UNKNOWN.search(reason) is not None


@contextmanager
def like_the_driver(expected: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Meanwhile, what the driver has opened is opened here, and its digests are put into what is yielded.

    Args:
        expected: The driver's, by what they are of, such as those of `prometar.training.run.contents_of`.

    Raises:
        StorageError: it cannot be opened, or is another: this machine is to blame, and no run.
    """
    found = dict[str, str]()
    try:
        yield found
    except StorageError:
        raise
    except UserError as error:
        lacking = one_line(str(error))
        raise StorageError(f"{_here()} lacks what the driver has checked: {lacking}") from None
    for name, digest in found.items():
        if expected.get(name, digest) != digest:
            raise StorageError(f"{_here()} has other {name} than this command began with: make them the same")


def require_shared(path: Path, *, name: Path, otherwise: str = "") -> None:
    """What the driver has made at `path` must be seen here; `name` is what is to be shared.

    Raises:
        StorageError: this machine is to blame, and no run.
    """
    if not path.exists():
        raise StorageError(f"{_here()} does not see {name}: share it between the machines{otherwise}")


def _here() -> str:
    return f"the machine {socket.gethostname()}"
