"""What stands for Ray's dashboard agent tells its ports, and ends with the raylet that started it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from prometar.distributed import no_agent

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-I", "-S", *sys.argv[1:]])
print(child.pid, flush=True)
child.wait()
"""


def test_it_tells_its_ports_and_ends_with_its_raylet(tmp_path: Path) -> None:
    session = tmp_path / "a session"
    session.mkdir()
    command = [sys.executable, "-c", PARENT, no_agent.__file__, str(session), "n0", "--measure-nothing"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as raylet:
        assert raylet.stdout is not None
        pid = int(raylet.stdout.readline())
        told = {session / f"{name}_n0" for name in no_agent.PORTS}
        for _ in range(600):
            if told <= set(session.iterdir()):
                break
            time.sleep(0.05)
        assert {path.read_text() for path in session.iterdir()} == {"-1"}
        assert set(session.iterdir()) == told
        assert _runs(pid)
        raylet.kill()
    for _ in range(600):
        if not _runs(pid):
            return
        time.sleep(0.05)
    raise AssertionError("it outlives its raylet")


def _runs(pid: int) -> bool:
    """Whether a process is there and not merely waited for."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
