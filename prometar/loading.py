"""Loading large packages."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache


@contextmanager
def nothing_collected() -> Iterator[None]:
    """Look for no garbage meanwhile.

    A module that loads leaves next to none; Python would look through all that torch and Ray have loaded so
    far, again and again, which is a sixth of their start.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@contextmanager
def loaded_for_good() -> Iterator[None]:
    """The same in a process that is ours alone: what is there after the first is never looked through again.

    That takes a quarter of a second among all that torch and Ray have loaded, four times as a study starts.
    In a notebook the user's own garbage would be kept too.
    """
    with nothing_collected():
        yield
        _keep_for_good()


@cache  # once: later there may be garbage of ours
def _keep_for_good() -> None:
    gc.freeze()
