"""Environments and relations of processes that tests start. It imports nothing slow."""

import contextlib
import os
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def without_ray() -> dict[str, str]:
    """Return an environment without the settings of a Ray that runs in this process.

    Workers of a Ray that starts in it have the priority of the tests, rather than Ray's lower one.
    """
    others = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
    return {**others, "RAY_worker_niceness": "0"}


def as_elsewhere(name: str) -> ModuleType:
    """Return a new copy of a module, as another process would import it."""
    spec = find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the command, from the state on.

    Raises:
        OSError: The process has ended.
    """
    text = Path(f"/proc/{pid}/stat").read_text()
    _, _, fields = text.rpartition(")")  # the command, in parentheses, can contain spaces
    return fields.split()


def _all_pids() -> list[int]:
    """Return the ids of all processes. Without /proc, there are none."""
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]


def parent_of(pid: int) -> int | None:
    """Return the id of a process's parent, or None if the process has ended."""
    try:
        return int(_stat(pid)[1])
    except OSError:
        return None


def parents() -> dict[int, int | None]:
    """Return the parents of all processes, by process id."""
    return {pid: parent_of(pid) for pid in _all_pids()}


def session(leader: int) -> list[int]:
    """Return the processes of a session. Without /proc, there are none."""
    members = []
    for pid in _all_pids():
        with contextlib.suppress(OSError):  # it has ended
            if int(_stat(pid)[3]) == leader:
                members.append(pid)
    return members


def family(root: int) -> set[int]:
    """Return a process and all its descendants."""
    parent_by_pid = parents()
    members = {root}
    while True:
        children = {pid for pid, parent in parent_by_pid.items() if parent in members}
        if children <= members:
            return members
        members |= children


def listening(root: int) -> list[str]:
    """Return the local addresses on which a process and its descendants listen, as in /proc/net/tcp (hex)."""
    sockets = set()
    for pid in family(root):
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):  # it has been closed
                sockets.add(str(descriptor.readlink()))
    addresses = []
    for table in ("tcp", "tcp6"):
        _, *rows = Path("/proc/net", table).read_text().splitlines()
        for row in rows:
            columns = row.split()
            address, _, _ = columns[1].partition(":")
            is_listening = columns[3] == "0A"
            if is_listening and f"socket:[{columns[9]}]" in sockets:
                addresses.append(address)
    return addresses
