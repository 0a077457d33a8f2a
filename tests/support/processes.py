"""Processes of tests: where they start, what they know, which belong together; nothing slow is imported."""

import contextlib
import os
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def without_ray() -> dict[str, str]:
    """Environment of a Ray that is independent of this one. Its workers do not give way to other tests."""
    own = {key: text for key, text in os.environ.items() if not key.startswith("RAY_")}
    return {**own, "RAY_worker_niceness": "0"}


def as_elsewhere(name: str) -> ModuleType:
    """A module of ours as another process has it: loaded once more, and nobody else's."""
    spec = find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def session(leader: int) -> list[int]:
    """The processes of a session (on Linux; elsewhere none are seen)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            if int(stat.read_text().rsplit(")", 1)[1].split()[3]) == leader:
                found.append(int(stat.parent.name))
    return found


def family(root: int) -> set[int]:
    """A process and all its descendants."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
    members = {root}
    while grown := {pid for pid, parent in parents.items() if parent in members} - members:
        members |= grown
    return members


def listening(root: int) -> list[str]:
    """Local addresses (hex, as in /proc/net/tcp) on which a process and its descendants listen."""
    sockets = set()
    for pid in family(root):
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                sockets.add(str(descriptor.readlink()))
    rows = [
        line.split() for f in ("tcp", "tcp6") for line in Path("/proc/net", f).read_text().splitlines()[1:]
    ]
    return [row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]
