"""What other packages log while they do what was asked for."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unlogged(highest: int = logging.WARNING) -> Iterator[None]:
    """Nothing up to this level is logged: warnings of what was asked for tell a user nothing to mend."""
    before = logging.root.manager.disable
    logging.disable(max(before, highest))
    try:
        yield
    finally:
        logging.disable(before)
