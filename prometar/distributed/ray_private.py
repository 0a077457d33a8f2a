"""Ray's private names that starting it rests on: another version may lack them, or mean other things."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

HELPERS = ("start_monitor", "start_api_server", "start_log_monitor")


@contextmanager
def without_helpers() -> Iterator[None]:
    """Start no process of Ray's that helps nobody where one machine is used for one command.

    They add machines, serve a dashboard without a page, and send workers' logs to a driver that shows none:
    each a Python of its own, which takes a second to load and memory for as long as it runs.
    """
    from ray._private.node import Node

    node_class: Any = Node
    before = {name: getattr(node_class, name) for name in HELPERS}
    for name in HELPERS:
        setattr(node_class, name, _nothing)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(node_class, name, method)


def _nothing(node: Any, **options: Any) -> None:
    """In place of a start."""
