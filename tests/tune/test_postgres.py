"""A study in PostgreSQL: a real server, a killed driver, a server that goes away and comes back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial

from prometar.errors import UserError, WorkError
from tests.tune.driver import NAME, records, run_fake, small_request
from tests.tune.fake_trial import BEHAVIOUR
from tune.storage import open_study

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "never-to-be-shown"

psycopg = pytest.importorskip("psycopg")


class Server:
    """A PostgreSQL server of its own on 127.0.0.1; it refuses to be root, so it is nobody then."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._process = folder, None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"postgresql+psycopg://study:{PASSWORD}@127.0.0.1:{self._port}/postgres"
        self._as: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        if os.getuid() == 0:
            self._as |= {"user": "nobody", "group": "nogroup", "extra_groups": []}
            shutil.chown(folder, "nobody", "nogroup")
        (folder / "password").write_text(PASSWORD)
        (folder / "password").chmod(0o644)
        options = ["--username=study", "--auth=scram-sha-256", "--pwfile=password", "--no-sync"]
        subprocess.run(["initdb", "--pgdata=data", *options], check=True, timeout=60, **self._as)

    def start(self) -> None:
        options = ["-h", "127.0.0.1", "-p", str(self._port), "-k", "", "-F"]
        self._process = subprocess.Popen(["postgres", "-D", "data", *options], **self._as)
        end = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(self.url.replace("+psycopg", ""), connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None, "the server does not start"
                assert time.monotonic() < end, "the server does not answer"
                time.sleep(0.1)

    def stop(self) -> None:
        """End it at once, and whatever is connected with it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)
            self._process = None


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if not (shutil.which("initdb") and shutil.which("postgres")):
        pytest.skip("no PostgreSQL: install its initdb and postgres")
    folder = Path(tempfile.mkdtemp(prefix="prometar-postgres-"))
    server = Server(folder)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture
def url(server: Server, request: pytest.FixtureRequest) -> str:
    """A database of the test's own."""
    name = f"test{abs(hash(request.node.name))}"
    with psycopg.connect(server.url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"create database {name}")
    return server.url.replace("/postgres", f"/{name}")


def trials(url: str) -> list[FrozenTrial]:
    study = open_study(url, NAME)
    found = study.trials
    study._storage._backend.engine.dispose()  # the server must be free to end
    return found


def states(url: str) -> Counter[str]:
    return Counter(t.state.name for t in trials(url))


class Driver:
    """The study's command in a process group of its own, so that it can be ended with all of its Ray."""

    def __init__(self, out: Path, trials: int, url: str) -> None:
        command = [sys.executable, "-m", "tests.tune.postgres_driver", str(out), str(trials), url]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)

    def wait_until(self, condition: Callable[[], Any], timeout_seconds: float = 90) -> None:
        end = time.monotonic() + timeout_seconds
        while not condition():
            assert self._process.poll() is None, self._process.communicate()
            assert time.monotonic() < end, "the driver made no progress"
            time.sleep(0.05)

    def end(self, sig: signal.Signals | None = None) -> tuple[int, str, str]:
        """Its status and what it printed; `sig` is sent to it alone, what it leaves of Ray is ended too."""
        try:
            if sig is not None:
                self._process.send_signal(sig)
                self._process.wait(60)
                self._sweep()  # its children hold the pipes
            out, err = self._process.communicate(timeout=120)
            return self._process.returncode, out, err
        finally:
            self._sweep()

    def _sweep(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def slow_from(number: int, out: Path) -> Path:
    """Let trial `number` and the next one take long. Returns where their epochs are written down."""
    folder = out / NAME
    folder.mkdir()
    (folder / BEHAVIOUR).write_text(json.dumps({str(number + k): "sleep2" for k in range(2)}))
    return folder / f"trials/{number:04d}/steps.log"


def test_a_driver_killed_in_the_middle_goes_on(url: str, tmp_path: Path) -> None:
    begun = slow_from(2, tmp_path)
    driver = Driver(tmp_path, 4, url)
    driver.wait_until(begun.exists)
    status, _, _ = driver.end(signal.SIGKILL)
    assert status == -signal.SIGKILL
    before = states(url)
    assert before["RUNNING"] >= 1, "the test came too late"
    assert before["COMPLETE"] >= 1
    drawn = [t.params for t in trials(url)]
    status, out, err = Driver(tmp_path, 4, url).end()
    assert status == 0, err
    assert f"{before['RUNNING']} were interrupted" in out
    assert states(url) == {"COMPLETE": 4}
    found = records(tmp_path)
    assert [r["number"] for r in found] == [0, 1, 2, 3]
    assert [r["settings"] for r in found][: len(drawn)] == drawn
    assert not (tmp_path / NAME / "study.db").exists()
    shown = (tmp_path / NAME / "study.yaml").read_text()
    assert "postgresql+psycopg://study:***@127.0.0.1" in shown
    assert not [file for file in (tmp_path / NAME).rglob("*") if holds_password(file)]
    assert PASSWORD not in out + err


def holds_password(file: Path) -> bool:
    return file.is_file() and PASSWORD.encode() in file.read_bytes()


def test_a_server_lost_in_the_middle_is_one_line_and_the_study_goes_on(
    server: Server, url: str, tmp_path: Path
) -> None:
    begun = slow_from(1, tmp_path)
    driver = Driver(tmp_path, 4, url)
    driver.wait_until(begun.exists)
    server.stop()
    try:
        status, out, err = driver.end()
        with pytest.raises(WorkError, match="cannot open the study storage") as down:
            run_fake(tmp_path, small_request(trials=4), storage=url)
    finally:
        server.start()
    assert status == 1
    assert err.startswith("error: ")
    assert err.endswith("; the same command goes on from here\n")
    assert err.count("\n") == 1
    assert "\n" not in str(down.value)
    assert PASSWORD not in f"{out}{err}{down.value}"
    status, out, err = Driver(tmp_path, 4, url).end()
    assert status == 0, err
    assert states(url) == {"COMPLETE": 4}
    assert [r["number"] for r in records(tmp_path)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "says", "status"),
    [
        (("never-to-be", "wrong"), "authentication failed", 1),
        (("/test", "/none"), "does not exist", 1),
        (("psycopg", "no_driver"), r"cannot open the study storage", 2),
    ],
)
def test_a_wrong_url_is_one_line_without_the_password(
    url: str, tmp_path: Path, change: tuple[str, str], says: str, status: int
) -> None:
    with pytest.raises(UserError, match=says) as caught:
        run_fake(tmp_path, small_request(), storage=url.replace(*change))
    assert caught.value.exit_code == status
    assert "\n" not in str(caught.value)
    assert "study:***@" in str(caught.value)
    assert "-shown" not in str(caught.value)
