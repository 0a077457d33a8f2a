"""Downloads that other libraries make: without their log lines, and with errors of one line."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prometar.errors import WorkError, first_line


@contextmanager
def unlogged(highest: int = logging.WARNING) -> Iterator[None]:
    """Suppress log records up to this level."""
    before = logging.root.manager.disable
    logging.disable(max(before, highest))
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def fetching(what: str, otherwise: str) -> Iterator[None]:
    """Convert errors of a download to one line.

    Args:
        what: Object of the download, for the message.
        otherwise: Advice if it fails.

    Raises:
        WorkError: the download failed.
    """
    try:
        with unlogged(logging.ERROR):  # the client logs each attempt
            yield
    except Exception as error:  # the client raises errors of several libraries
        reason = first_line(error.__cause__ or error)
        raise WorkError(f"cannot fetch {what} ({reason}): {otherwise}") from None
