"""What other packages log while they do what was asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def warnings_unlogged() -> Iterator[None]:
    """Nothing below an error is logged: warnings of what was asked for tell a user nothing to mend."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
