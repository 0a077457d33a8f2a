"""Whose the files at a URL are: one study's, as a name says that its study.yaml and the URL both hold."""

from __future__ import annotations

from prometar.errors import UserError
from prometar.io.stores import masked
from tune.jobs.remote import Store

_OWNER = "owner"


def require_own(url: str, key: str, *, begun: bool) -> None:
    """See that the files at `url` are the study's.

    Args:
        key: The study's. begun: Whether files may lie there that are older than their study's key.
    Raises:
        UserError: they are another study's. WorkError: the store cannot be reached.
    """
    store = Store(url)
    found = store.read(_OWNER)
    if found == key.encode() or (found is None and (begun or not store.names())):
        return
    raise UserError(
        f"{masked(url)} holds the files of another study: go on with that one's --out; "
        "or choose another --study NAME or --files; or delete them there"
    )


def take(url: str, key: str) -> None:
    """Make the files at `url` the study's.

    Raises:
        UserError: another study has taken them at the same moment. WorkError: the store cannot be reached.
    """
    require_own(url, key, begun=True)
    Store(url).write(_OWNER, key.encode())
    require_own(url, key, begun=False)
