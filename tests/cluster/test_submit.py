"""A job on a real cluster: submitted with this checkout, followed, stopped half-way, submitted again."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import without_ray
from tests.support.shipped import CLUSTERS, ROOT, script

STUDY = [
    "python", "tune/search.py", "--dataset", "textures", "--epochs", "1",
    "--set", "data.shots=2", "--set", "search.val_per_class=4", "--max-concurrent", "1", "--pruner", "none",
    "--top", "0", "--final-seeds", "",
]  # fmt: skip


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

    def ray(self, *words: str, timeout: float = 600, **more: str) -> subprocess.CompletedProcess[str]:
        """A `ray` command; returns what it did."""
        return subprocess.run(
            [Path(sys.executable).with_name("ray"), *words], env={**self.environment, **more},
            cwd=ROOT, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip

    def submit(self, name: str, *command: str) -> subprocess.Popen[str]:
        """clusters/submit.py, following the job; its output goes to NAME.log."""
        with (self.folder / f"{name}.log").open("w") as log:
            return subprocess.Popen(
                [sys.executable, CLUSTERS / "submit.py", "--submission-id", name, "--", *command],
                env=self.environment, cwd=self.folder, stdout=log, stderr=log, text=True,
            )  # fmt: skip

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


@pytest.fixture(scope="module")
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
        "start", "--head", "--num-cpus=2", "--node-ip-address=127.0.0.1", f"--port={gcs}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder / 'r'}",
        f"--object-store-memory={2**28}",
    )  # fmt: skip
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


def records(out: Path) -> dict[int, str]:
    """Ended trials: number and the record as it stands."""
    files = sorted((out / "textures" / "trials").glob("*/record.json"))
    return {json.loads(file.read_text())["number"]: file.read_text() for file in files}


def test_a_stopped_study_goes_on_when_it_is_submitted_again(
    cluster: Cluster, refused: "dict[str, Refused]"
) -> None:
    """Meanwhile the cluster refuses others."""
    out = cluster.folder / "out"
    study = [*STUDY, "--address", "auto", "--out", str(out), "--trials"]
    first = cluster.submit("first", "python", "clusters/wait.py", "--cpus", "2", "--", *study, "50")
    until(lambda: records(out) or first.poll() is not None, 400)
    assert first.poll() is None, cluster.log("first")
    assert cluster.ray("job", "stop", "first").returncode == 0
    first.wait(300)
    before = records(out)
    assert 0 < len(before) < 49, "stopped half-way"
    assert f"Study {out}/textures" in cluster.log("first"), "the job's lines are followed"

    # The same command, this time without the script around it; one more trial is enough.
    trials = len(before) + 1
    again = cluster.ray(
        "job", "submit", "--submission-id", "second", "--working-dir", ".",
        "--runtime-env", "clusters/runtime-env.yaml", "--", *study, str(trials),
    )  # fmt: skip
    assert again.returncode == 0, again.stdout + again.stderr
    # On a busy machine Ray may follow a job without its first lines: they are in its log.
    (log,) = cluster.folder.glob("r/session_2*/logs/job-driver-second.log")
    assert f"Resuming: {len(before)} trials finished" in log.read_text()
    after = records(out)
    assert sorted(after) == list(range(trials)), "no trial is lost"
    assert {number: after[number] for number in before} == before, "and none is run twice"
    assert all(json.loads(text)["state"] == "COMPLETE" for text in after.values())


def test_the_upload_is_what_a_study_needs(cluster: Cluster) -> None:
    show = "import os, prometar, tune; print('code', os.getcwd(), prometar.__file__, tune.__file__)"
    shown = cluster.submit("code", "python", "-c", show)
    assert shown.wait(300) == 0, cluster.log("code")
    (words,) = re.findall(r"^code (.*)", cluster.log("code"), flags=re.MULTILINE)
    folder, *modules = words.split()
    assert str(cluster.folder) in folder
    assert all(module.startswith(folder) for module in modules), "the job runs the code that was sent"
    sent = {path.name for path in Path(folder).iterdir()}
    assert {"prometar", "tune", "clusters"} <= sent
    assert not sent & {".git", ".venv", "out", "tests", "docs", "benchmarks"}
    size = sum(path.stat().st_size for path in Path(folder).rglob("*.*") if "__pycache__" not in path.parts)
    counted = script("submit").upload_sizes(ROOT)
    assert size < 20 * 2**20
    assert set(counted) <= sent | {"LICENSE", "Makefile"}
    assert sum(counted.values()) == pytest.approx(size, rel=0.05)


def test_without_the_token_nothing_is_submitted(cluster: Cluster) -> None:
    (cluster.folder / "other").write_text("f" * 64)
    refused = cluster.ray(
        "job", "submit", "--no-wait", "--", "true", RAY_AUTH_TOKEN_PATH=str(cluster.folder / "other")
    )
    assert refused.returncode != 0
    assert re.search(
        r"40[13]|[Uu]nauthori[sz]ed|[Ff]orbidden|[Aa]uthentication", refused.stderr + refused.stdout
    )


@dataclass(frozen=True)
class Refused:
    """A command that a cluster does not let in, and how its line begins."""

    process: subprocess.Popen[str]
    prefix: str


@pytest.fixture(scope="module")
def refused(cluster: Cluster) -> Iterator[dict[str, Refused]]:
    """Commands without the right token, all at once: Ray takes twenty seconds to see that one is wrong.

    Each has a folder of its own, or one would say that another runs the study.
    """
    search = [*STUDY, "--address", cluster.address]  # a folder each, or one says that it is taken
    wait = ["python", "clusters/wait.py", "--cpus", "2", "--", "echo", "never"]

    def start(name: str, mode: str, token: str, words: list[str], prefix: str) -> Refused:
        file = cluster.folder / f"token-{name}"
        file.write_text(token)
        mine = {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN_PATH": str(file), "RAY_ADDRESS": cluster.address}
        pipe = subprocess.PIPE
        out = ["--out", str(cluster.folder / name)] if words is search else []
        process = subprocess.Popen(
            [*words, *out], env={**cluster.environment, **mine}, cwd=ROOT, stdout=pipe, stderr=pipe, text=True
        )
        return Refused(process, f"error: {prefix}")

    found = {
        name: start(name, *given)
        for name, *given in (
            ("wrong", "token", "f" * 64, search, "Ray cannot be joined at "),
            ("none", "token", "", search, "Ray cannot be joined at "),
            ("none-wait", "token", "", wait, ""),
            ("off-wait", "disabled", "", wait, ""),
        )
    }
    yield found
    for each in found.values():
        each.process.kill()


@pytest.mark.parametrize("name", ["wrong", "none", "none-wait", "off-wait"])
def test_who_has_no_token_joins_nothing_and_is_told_in_one_line(
    refused: dict[str, Refused], name: str
) -> None:
    printed, said = refused[name].process.communicate(timeout=400)
    (line,) = [line for line in said.splitlines() if not line.startswith("[")]
    assert line.startswith(refused[name].prefix)
    assert "token" in line
    assert refused[name].process.returncode == 1
    assert "never" not in printed


def test_wait_says_what_is_missing(cluster: Cluster) -> None:
    waited = subprocess.run(
        [sys.executable, CLUSTERS / "wait.py", "--gpus", "4", "--minutes", "0.02", "--", "echo", "never"],
        env={**cluster.environment, "RAY_ADDRESS": cluster.address},  # as a job has it
        cwd=cluster.folder, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert (waited.returncode, "never" in waited.stdout) == (1, False)
    assert "the cluster has 0 of 4 GPUs" in waited.stderr


def test_a_large_upload_is_refused_before_it_is_packed(tmp_path: Path) -> None:
    refusal = script("submit").refusal
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images.bin").write_bytes(bytes(3 * 2**20))
    (tmp_path / "small.py").write_text("pass")
    assert refusal(tmp_path, limit_mib=4) is None
    assert re.search(
        r"holds 3 MiB, a job takes 2 \(data 3 MiB, small.py 0 MiB\)", refusal(tmp_path, limit_mib=2)
    )
    (tmp_path / ".rayignore").write_text("/data\n")
    assert refusal(tmp_path, limit_mib=2) is None
    assert not refusal(ROOT)


@pytest.mark.parametrize("option", [["--address", "{}"], ["--address={}"], []])
def test_where_nobody_takes_jobs_one_line_says_so(
    option: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    if not option:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
    assert script("submit").main([*(word.format(address) for word in option), "--", "ls"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: no head of a Ray cluster takes jobs at {address}: ")
    assert said.count("\n") == 1


def test_ctrl_c_ends_the_following_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    submit = script("submit")
    monkeypatch.setattr(submit.subprocess, "run", interrupted)
    assert submit.main(["--", "python", "tune/search.py"]) == 130
