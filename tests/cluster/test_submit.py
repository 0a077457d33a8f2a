"""clusters/submit.py: a job on a real cluster is submitted with this checkout, followed, and stopped."""

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
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest

from tests.support.processes import without_ray
from tests.support.shipped import CLUSTERS, ROOT, SMALL_STUDY, script

STUDY = ["python", "tune/search.py", *SMALL_STUDY, "--max-concurrent", "1"]


def wait_until(condition: Callable[[], object], seconds: float) -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: The time is over.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.2)


@dataclass(frozen=True)
class Cluster:
    """A running Ray with a head of two CPUs.

    Args:
        folder: Folder of all its files. Its path is short, because paths of sockets are limited to 107 bytes.
        address: HOST:PORT of the head.
        environment: Environment of commands that use the cluster.
    """

    folder: Path
    address: str
    environment: dict[str, str]

    def ray(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a `ray` command, at most 600 s."""
        return subprocess.run(
            [Path(sys.executable).with_name("ray"), *words],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,
        )

    def submit(self, name: str, *command: str) -> subprocess.Popen[str]:
        """Start clusters/submit.py, which submits a job and follows it. Its output goes to NAME.log.

        Args:
            name: Name of the job.
            command: Command of the job.
        """
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
        """Return what clusters/submit.py has printed for a job so far."""
        return (self.folder / f"{name}.log").read_text()

    def processes(self) -> list[int]:
        """Return the ids of all processes of the cluster.

        The command line or the environment of each of them contains the folder.
        """
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                if int(entry.name) != os.getpid() and str(self.folder).encode() in text:
                    found.append(int(entry.name))
        return found


def free_ports(count: int) -> list[int]:
    """Return numbers of different ports on which nothing listens."""
    with ExitStack() as open_sockets:
        ports = []
        for _ in range(count):
            one = open_sockets.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            ports.append(one.getsockname()[1])
    return ports


def listens(port: int) -> bool:
    """Return whether a process listens on a port of this machine."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A new cluster, which is ended after the test."""
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
        # `ray start` returns before the head's agent accepts jobs.
        wait_until(lambda: listens(agent), 300)
        yield running
    finally:
        for kind in (signal.SIGTERM, signal.SIGKILL):
            for pid in running.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, kind)
            with suppress(AssertionError):
                wait_until(lambda: not running.processes(), 5)
        left = running.processes()
        shutil.rmtree(folder, ignore_errors=True)
        assert not left, "every process has ended"


def records(out: Path) -> list[Path]:
    """Return the paths of the records of trials that have ended."""
    return list(out.glob("cells/trials/*/record.json"))


def test_a_job_is_followed_and_stopped_half_way(cluster: Cluster) -> None:
    """The same job shows which files are uploaded, because a cluster takes seconds to start."""
    out = cluster.folder / "out"
    study = [*STUDY, "--trials", "50", "--out", str(out), "--address", "auto"]
    job = cluster.submit("job", "python", "clusters/wait.py", "--cpus", "2", "--", *study)
    wait_until(lambda: records(out) or job.poll() is not None, 400)
    assert job.poll() is None, cluster.log("job")

    assert cluster.ray("job", "stop", "job").returncode == 0
    job.wait(300)

    assert f"Study {out}/cells" in cluster.log("job"), "what the job prints is followed"
    storage = optuna.load_study(study_name="cells", storage=f"sqlite:///{out}/cells/study.db")
    states = Counter(trial.state.name for trial in storage.trials)
    assert 0 < len(records(out)) <= states["COMPLETE"] < 49, "stopped half-way"
    assert states.keys() <= {"COMPLETE", "WAITING", "RUNNING"}, "the next job resumes it"
    _check_upload(cluster)


def _check_upload(cluster: Cluster) -> None:
    """Check which parts of this checkout a job has uploaded, and that `upload_sizes` predicts their size."""
    (folder,) = cluster.folder.glob("r/session_2*/runtime_resources/working_dir_files/*/")
    uploaded = {path.name for path in folder.iterdir()}
    assert {"prometar", "tune", "clusters"} <= uploaded
    assert not uploaded & {".git", ".venv", "out", "tests", "docs", "benchmarks"}

    size = sum(path.stat().st_size for path in folder.rglob("*.*") if "__pycache__" not in path.parts)
    assert size < 20 * 2**20
    predicted = script("submit").upload_sizes(ROOT)
    assert set(predicted) <= uploaded | {"LICENSE", "Makefile"}
    assert sum(predicted.values()) == pytest.approx(size, rel=0.05)


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


def test_this_checkout_is_small_enough_to_be_uploaded() -> None:
    assert not script("submit").upload_error(ROOT)


def test_an_address_that_accepts_no_jobs_is_named_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}"
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
