"""Ray's workers forked off a process that has imported what they need: a twentieth of the time to start one.

`python -m tests.support.zygote SOCKET` is that process. It holds nothing of Ray's, whose threads would not
outlive a fork. As a script that Ray runs to set a worker up (`forked_workers`), this file asks it for one.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PLACE = "PROMETAR_TEST_ZYGOTE"
"""The environment's word for the socket."""
IMPORTED = ("torch", "pandas", "pyarrow.parquet", "aiohttp", "jsonschema", "prometar.training.train")
_CONTEXT = "--serialized-runtime-env-context="
_MOST_BYTES = 2**20


@contextmanager
def forked_workers() -> Iterator[None]:
    """Workers of a Ray that is started within are forked."""
    from ray._private.parameter import RayParams

    folder = Path(tempfile.mkdtemp(prefix="pm-", dir="/tmp"))  # short: a socket's path has its limit
    place = folder / "zygote"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as Ray has it for workers of one CPU
    command = [sys.executable, "-m", "tests.support.zygote", str(place)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], env=environment)
    os.environ[PLACE] = str(place)
    update = RayParams.update_if_absent

    def with_script(self: RayParams, **given: object) -> None:
        self.setup_worker_path = __file__
        update(self, **given)

    RayParams.update_if_absent = with_script
    try:
        yield
    finally:
        RayParams.update_if_absent = update
        del os.environ[PLACE]
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def serve(place: str) -> None:
    """Fork a process for whoever asks, as long as the process lives that started this one."""
    parent = os.getppid()
    for module in IMPORTED:
        __import__(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    door = socket.socket(socket.AF_UNIX)
    door.bind(place)
    door.listen(64)
    door.settimeout(0.5)
    while os.getppid() == parent:
        try:
            asking, _ = door.accept()
        except TimeoutError:
            continue
        text, files, _, _ = socket.recv_fds(asking, _MOST_BYTES, 3)
        while more := asking.recv(_MOST_BYTES):
            text += more
        if os.fork() == 0:
            door.close()
            _become(json.loads(text), files)
        for file in files:
            os.close(file)
        asking.close()


def _become(asked: dict[str, object], files: list[int]) -> None:
    """The process that was asked for: its arguments, environment, folder, output."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(str(asked["folder"]))
    sys.argv = list(asked["arguments"])
    paths = [str(Path(sys.argv[0]).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    sys.path[:] = list(dict.fromkeys([*filter(None, paths), *sys.path[1:]]))
    runpy.run_path(sys.argv[0], run_name="__main__")
    os._exit(0)


def ask() -> None:
    """In Ray's place: have a worker forked, or start it as Ray does where it wants more than that."""
    context = next((json.loads(a[len(_CONTEXT) :]) for a in sys.argv if a.startswith(_CONTEXT)), {})
    if context.get("command_prefix") or context.get("env_vars") or "--language=PYTHON" not in sys.argv:
        sys.path.pop(0)  # the folder of this file
        runpy.run_module("ray._private.workers.setup_worker", run_name="__main__")
    arguments = [a for a in sys.argv[1:] if not a.startswith((_CONTEXT, "--language="))]
    asked = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
    with _zygote() as zygote:
        socket.send_fds(zygote, [json.dumps(asked).encode()], [0, 1, 2])


def _zygote() -> socket.socket:
    """A connection, once it has imported everything."""
    end = time.monotonic() + 120
    while True:
        zygote = socket.socket(socket.AF_UNIX)
        try:
            zygote.connect(os.environ[PLACE])
            return zygote
        except (FileNotFoundError, ConnectionRefusedError):
            zygote.close()
            assert time.monotonic() < end, "what workers are forked off does not answer"
            time.sleep(0.02)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    ask()
