"""A job on a real cluster: submitted with this checkout, followed, stopped half-way."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest

from tests.support.processes import without_ray
from tests.support.shipped import CLUSTERS, ROOT, SMALL_STUDY, script

STUDY = ["python", "tune/search.py", *SMALL_STUDY, "--max-concurrent", "1"]


def until(holds: Callable[[], object], seconds: float) -> None:
    """Wait for it; a machine under load is no failure."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.2)


@dataclass(frozen=True)
class Cluster:
    """A head of two CPUs in `folder`, whose path is short: a socket's has at most 107 characters."""

    folder: Path
    address: str
    environment: dict[str, str]

    def ray(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a `ray` command."""
        return subprocess.run(
            [Path(sys.executable).with_name("ray"), *words],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,
        )

    def submit(self, name: str, *command: str) -> subprocess.Popen[str]:
        """clusters/submit.py, following the job; its output goes to NAME.log."""
        with (self.folder / f"{name}.log").open("w") as log:
            return subprocess.Popen(
                [sys.executable, CLUSTERS / "submit.py", "--submission-id", name, "--", *command],
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                text=True,
            )

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def processes(self) -> list[int]:
        """All that Ray runs in the folder, which each of its command lines or environments names."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                if int(entry.name) != os.getpid() and str(self.folder).encode() in text:
                    found.append(int(entry.name))
        return found


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    if not Path("/proc/self/environ").exists():
        pytest.skip("needs Linux's /proc, to end what it has started")
    folder = Path(tempfile.mkdtemp(prefix="pm", dir="/tmp"))
    gcs, dashboard, client, agent = free_ports(4)
    (folder / "token").write_text("0123456789abcdef" * 4)
    (folder / "token").chmod(0o600)
    environment = {
        **without_ray(),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every server on 127.0.0.1, as Ray does on a Mac
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_prestart_worker_first_driver": "0",
    }
    running = Cluster(folder, f"127.0.0.1:{gcs}", environment)
    started = running.ray(
        "start",
        "--head",
        "--num-cpus=2",
        "--node-ip-address=127.0.0.1",
        f"--port={gcs}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}",
        f"--temp-dir={folder / 'r'}",
        f"--object-store-memory={2**28}",
    )
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        until(lambda: listens(agent), 300)  # `ray start` comes back before the head's agent takes jobs
        yield running
    finally:
        for kind in (signal.SIGTERM, signal.SIGKILL):
            for pid in running.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, kind)
            with suppress(AssertionError):
                until(lambda: not running.processes(), 5)
        left = running.processes()
        shutil.rmtree(folder, ignore_errors=True)
        assert not left, "every process has ended"


def records(out: Path) -> list[Path]:
    """Records of ended trials."""
    return list(out.glob("cells/trials/*/record.json"))


def test_a_job_is_followed_and_stopped_half_way(cluster: Cluster) -> None:
    out = cluster.folder / "out"
    study = [*STUDY, "--trials", "50", "--out", str(out), "--address", "auto"]
    job = cluster.submit("job", "python", "clusters/wait.py", "--cpus", "2", "--", *study)
    until(lambda: records(out) or job.poll() is not None, 400)
    assert job.poll() is None, cluster.log("job")
    assert cluster.ray("job", "stop", "job").returncode == 0
    job.wait(300)
    assert f"Study {out}/cells" in cluster.log("job"), "the job's lines are followed"
    storage = optuna.load_study(study_name="cells", storage=f"sqlite:///{out}/cells/study.db")
    states = Counter(trial.state.name for trial in storage.trials)
    assert 0 < len(records(out)) <= states["COMPLETE"] < 49, "stopped half-way"
    assert states.keys() <= {"COMPLETE", "WAITING", "RUNNING"}, "the next job resumes it"

    (folder,) = cluster.folder.glob("r/session_2*/runtime_resources/working_dir_files/*/")
    sent = {path.name for path in folder.iterdir()}
    assert {"prometar", "tune", "clusters"} <= sent
    assert not sent & {".git", ".venv", "out", "tests", "docs", "benchmarks"}
    size = sum(path.stat().st_size for path in folder.rglob("*.*") if "__pycache__" not in path.parts)
    counted = script("submit").upload_sizes(ROOT)
    assert size < 20 * 2**20
    assert set(counted) <= sent | {"LICENSE", "Makefile"}
    assert sum(counted.values()) == pytest.approx(size, rel=0.05)


def test_a_large_upload_is_refused_before_it_is_packed(tmp_path: Path) -> None:
    upload_error = script("submit").upload_error
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images.bin").write_bytes(bytes(3 * 2**20))
    (tmp_path / "small.py").write_text("pass")
    assert upload_error(tmp_path, limit_mib=4) is None
    error = upload_error(tmp_path, limit_mib=2)
    assert re.search(r"contains 3 MiB, but .* most 2 MiB\. .* entries: data 3 MiB, small.py 0 MiB\.$", error)
    (tmp_path / ".rayignore").write_text("/data\n")
    assert upload_error(tmp_path, limit_mib=2) is None
    assert not upload_error(ROOT)


def test_where_nobody_takes_jobs_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert script("submit").main(["--address", address, "--", "ls"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: no Ray cluster accepts jobs at {address}: ")
    assert said.count("\n") == 1


def test_ctrl_c_ends_the_following_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    submit = script("submit")
    monkeypatch.setattr(submit.subprocess, "run", interrupted)
    assert submit.main(["--", "python", "tune/search.py"]) == 130
