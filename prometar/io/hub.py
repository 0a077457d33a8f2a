"""Downloads by other libraries, without their log messages and with one-line errors."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prometar.errors import WorkError, first_line


@contextmanager
def suppress_logs(highest: int = logging.WARNING) -> Iterator[None]:
    """Suppress log records up to this level."""
    before = logging.root.manager.disable
    logging.disable(max(before, highest))
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def download_errors(what: str, fix: str) -> Iterator[None]:
    """Convert errors of a download to one-line errors.

    Args:
        what: Name of the downloaded object in the message.
        fix: Advice in the message.

    Raises:
        WorkError: the download failed.
    """
    try:
        with suppress_logs(logging.ERROR):  # the client logs each attempt
            yield
    except Exception as error:  # the client raises errors of several libraries
        reason = first_line(error.__cause__ or error)
        raise WorkError(f"cannot fetch {what} ({reason}): {fix}") from None
