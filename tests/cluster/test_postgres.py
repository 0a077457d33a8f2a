"""A study in PostgreSQL: a real server, a killed driver, a server that goes away and comes back."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial

from prometar.errors import UserError, WorkError
from tests.support.databases import open_study
from tests.support.driver import NAME, Driver, forget_hanging, misbehave, records, run_fake, small_spec
from tests.support.fake_trial import HANGS
from tune.optimizer.storage import drive_study

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
        subprocess.run(["initdb", "--pgdata=data", *options], check=True, timeout=200, **self._as)

    def start(self) -> None:
        options = ["-h", "127.0.0.1", "-p", str(self._port), "-k", "", "-F"]
        self._process = subprocess.Popen(["postgres", "-D", "data", *options], **self._as)
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
        """End it at once, and whatever is connected with it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(120)
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


def hanging(out: Path) -> list[int]:
    return sorted(int(file.parent.name) for file in (out / NAME / "trials").glob(f"*/{HANGS}"))


def test_a_driver_killed_and_a_server_lost_in_the_middle_cost_nothing(
    server: Server, url: str, tmp_path: Path, ray_local: str
) -> None:
    """One study for both."""
    place = ("--storage", url, "--address", ray_local)
    misbehave(tmp_path, {"2": "hang", "3": "hang"})
    with Driver(tmp_path, *place) as driver:
        driver.wait_until(lambda: hanging(tmp_path) == [2, 3])
        assert driver.kill() == -signal.SIGKILL
    assert states(url) == {"COMPLETE": 2, "RUNNING": 2}
    drawn = [t.params for t in trials(url)]
    forget_hanging(tmp_path)
    misbehave(tmp_path, {"3": "hang"})
    with Driver(tmp_path, *place) as driver:
        driver.wait_until(lambda: hanging(tmp_path) == [3] and len(records(tmp_path)) == 3)
        server.stop()
        misbehave(tmp_path, {})
        assert driver.wait() == 1
        said, errors = driver.said(), driver.errors()
    try:
        with pytest.raises(WorkError, match="cannot open the study storage") as down:
            run_fake(tmp_path, small_spec(trials=4), storage=url)
    finally:
        server.start()
    assert "2 were interrupted" in said
    assert errors.endswith("; the same command goes on from here\n")
    assert errors.count("\n") == 1
    assert "\n" not in str(down.value)
    with Driver(tmp_path, *place) as driver:
        assert driver.wait() == 0, driver.errors()
        said += driver.said() + driver.errors()
    assert states(url) == {"COMPLETE": 4}
    found = records(tmp_path)
    assert [r["number"] for r in found] == [0, 1, 2, 3]
    assert [r["settings"] for r in found] == drawn
    assert not (tmp_path / NAME / "study.db").exists()
    shown = (tmp_path / NAME / "study.yaml").read_text()
    assert "postgresql+psycopg://study:***@127.0.0.1" in shown
    assert not [file for file in (tmp_path / NAME).rglob("*") if holds_password(file)]
    assert PASSWORD not in f"{said}{errors}{down.value}"


def holds_password(file: Path) -> bool:
    return file.is_file() and PASSWORD.encode() in file.read_bytes()


def test_a_connection_that_is_closed_while_nothing_is_written_is_opened_anew(url: str) -> None:
    study, storage = drive_study(url, NAME)
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and pid != pg_backend_pid()"
        )
    study.set_user_attr("key", 1)
    storage.close()
    study, storage = drive_study(url, NAME)
    assert study.user_attrs == {"key": 1}
    storage.close()


def test_a_database_without_an_encoding_is_read_as_text(server: Server) -> None:
    """As initdb makes it where the locale is C."""
    with psycopg.connect(server.url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("create database plain encoding 'SQL_ASCII' template template0 locale 'C'")
    url = server.url.replace("/postgres", "/plain")
    study, storage = drive_study(url, NAME)
    study.set_user_attr("key", "é")
    storage.close()
    read = open_study(url, NAME)
    assert read.user_attrs == {"key": "é"}
    read._storage._backend.engine.dispose()


def test_nothing_is_prepared_on_a_connection_that_a_pooler_may_give_to_others(url: str) -> None:
    """The next transaction gets another one, which does not know it; psycopg would prepare the sixth."""
    study, storage = drive_study(url, NAME)
    for value in range(12):
        study.set_user_attr("key", value)
    with storage._backend._backend.engine.connect() as connection:
        assert connection.exec_driver_sql("select name from pg_prepared_statements").all() == []
    storage.close()


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
        run_fake(tmp_path, small_spec(), storage=url.replace(*change))
    assert caught.value.exit_code == status
    assert "\n" not in str(caught.value)
    assert "study:***@" in str(caught.value)
    assert "-shown" not in str(caught.value)
