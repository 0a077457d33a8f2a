"""A study in a real PostgreSQL server, which stops and starts again, and whose clients are killed."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage

from prometar.errors import InfrastructureError, PrometarError
from tests.support.databases import NAME, open_store
from tests.support.processes import ROOT
from tune.store.storage import convert_db_errors, open_storage

PASSWORD = "never-to-be-shown"

psycopg = pytest.importorskip("psycopg")


class Server:
    """A PostgreSQL server on 127.0.0.1.

    PostgreSQL refuses to run as root. If the tests run as root, the server runs as the user "nobody".

    Args:
        folder: Empty folder of the server.
    """

    def __init__(self, folder: Path) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"postgresql+psycopg://study:{PASSWORD}@127.0.0.1:{self._port}/postgres"
        self._popen_options: dict[str, Any] = {
            "cwd": folder,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
        }
        if os.getuid() == 0:
            self._popen_options |= {"user": "nobody", "group": "nogroup", "extra_groups": []}
            shutil.chown(folder, "nobody", "nogroup")
        (folder / "password").write_text(PASSWORD)
        (folder / "password").chmod(0o644)
        options = ["--username=study", "--auth=scram-sha-256", "--pwfile=password", "--no-sync"]
        subprocess.run(["initdb", "--pgdata=data", *options], check=True, timeout=200, **self._popen_options)

    def start(self) -> None:
        """Start the server and wait until it answers, at most 120 s."""
        # -k "": no socket in the file system. -F: do not wait for the disk.
        options = ["-h", "127.0.0.1", "-p", str(self._port), "-k", "", "-F"]
        self._process = subprocess.Popen(["postgres", "-D", "data", *options], **self._popen_options)
        end = time.monotonic() + 120
        while True:
            try:
                psycopg.connect(self.url.replace("+psycopg", ""), connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None, "the server does not start"
                assert time.monotonic() < end, "the server does not answer"
                time.sleep(0.1)

    def stop(self) -> None:
        """Stop the server at once. All connections break."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(120)
            self._process = None


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A running server. Tests that stop it must start it again."""
    if not (shutil.which("initdb") and shutil.which("postgres")):
        pytest.skip("PostgreSQL is missing. Install initdb and postgres")
    folder = Path(tempfile.mkdtemp(prefix="prometar-postgres-"))
    server = Server(folder)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture
def url(server: Server, request: pytest.FixtureRequest) -> str:
    """The URL of a new database."""
    name = f"test{abs(hash(request.node.name))}"
    with psycopg.connect(server.url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"create database {name}")
    return server.url.replace("/postgres", f"/{name}")


def opened(url: str) -> tuple[RDBStorage, int]:
    """Return the storage of a database, and the ID of its study, which is created if it does not exist."""
    storage = open_storage(url)
    study = optuna.create_study(storage=storage, study_name=NAME, direction="maximize", load_if_exists=True)
    return storage, storage.get_study_id_from_name(study.study_name)


def stored(url: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the states and settings of all trials in a database."""
    storage, study = opened(url)
    trials = storage.get_all_trials(study)
    storage.engine.dispose()  # the server must be free to stop
    return [(trial.state.name, trial.params) for trial in trials]


def drive(out: Path, url: str, *hanging: int) -> "subprocess.Popen[str]":
    """Start `tests.support.store_process`, which runs the trials of a study without training.

    Args:
        out: Parent of the study's folder.
        url: URL of the database.
        hanging: Numbers of trials that never end. If there are any, wait until only these trials are left.

    Returns:
        The process.
    """
    command = [sys.executable, "-m", "tests.support.store_process", str(out), url, *map(str, hanging)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if hanging:
        assert process.stdout is not None
        assert process.stdout.readline().split()[1:] == list(map(str, hanging))
    return process


def test_a_killed_process_and_a_lost_server_lose_no_trial(server: Server, url: str, tmp_path: Path) -> None:
    """One study meets both, because a start of the server takes seconds."""
    # The process is killed while the trials 2 and 3 run.
    with drive(tmp_path, url, 2, 3) as killed:
        killed.kill()
        assert killed.wait() == -signal.SIGKILL
    trials = stored(url)
    assert [state for state, _ in trials] == ["COMPLETE", "COMPLETE", "RUNNING", "RUNNING"]

    # Another process completes trial 2. Then it loses the server.
    with drive(tmp_path, url, 3) as loses_server:
        assert [state for state, _ in stored(url)] == ["COMPLETE", "COMPLETE", "COMPLETE", "RUNNING"]
        server.stop()
        _, errors = loses_server.communicate(timeout=120)
        assert loses_server.returncode == 1
    assert errors.endswith("then rerun the same command to resume.\n")
    assert errors.count("\n") == 1
    assert PASSWORD not in errors

    # Without a server, the study cannot be opened.
    try:
        with (
            pytest.raises(InfrastructureError, match=r"The study storage postgresql.* failed") as caught,
            convert_db_errors(url),
        ):
            open_store(tmp_path, url=url)
    finally:
        server.start()
    assert "\n" not in str(caught.value)
    assert PASSWORD not in str(caught.value)

    # With the server, all trials are completed with the settings that they had.
    with drive(tmp_path, url) as resumed:
        _, errors = resumed.communicate(timeout=120)
        assert resumed.returncode == 0, errors
    assert stored(url) == [("COMPLETE", settings) for _, settings in trials]


def test_a_connection_that_was_closed_while_idle_is_opened_again(url: str) -> None:
    storage, study = opened(url)
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and pid != pg_backend_pid()"
        )
    storage.set_study_user_attr(study, "key", 1)
    assert storage.get_study_user_attrs(study) == {"key": 1}
    storage.engine.dispose()


def test_no_statement_is_prepared_on_a_connection_that_a_pooler_may_share(url: str) -> None:
    """By default, psycopg prepares a statement that has been executed more than five times."""
    storage, study = opened(url)
    for value in range(12):
        storage.set_study_user_attr(study, "key", value)
    with storage.engine.connect() as connection:
        assert connection.exec_driver_sql("select name from pg_prepared_statements").all() == []
    storage.engine.dispose()


@pytest.mark.parametrize(
    ("change", "message", "status"),
    [
        (("never-to-be", "wrong"), "authentication failed", 1),
        (("/test", "/none"), "does not exist", 1),
        (("psycopg", "no_driver"), "is invalid", 2),
    ],
    ids=["password", "database", "driver"],
)
def test_a_wrong_url_is_one_line_without_the_password(
    url: str, tmp_path: Path, change: tuple[str, str], message: str, status: int
) -> None:
    wrong = url.replace(*change)
    with pytest.raises(PrometarError, match=message) as caught, convert_db_errors(wrong):
        open_store(tmp_path, url=wrong)
    assert caught.value.exit_code == status
    assert "\n" not in str(caught.value)
    assert "study:***@" in str(caught.value)
    assert "-shown" not in str(caught.value)
