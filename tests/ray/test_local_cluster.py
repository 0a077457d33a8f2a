"""A cluster that a command starts: its token, and errors whose result is never used."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT, without_ray

# Starts a local cluster as a study does, and prints the token that its workers have. With this umask, other
# users can read new files. The result of the task that fails is deleted unused, as when a study stops because
# of another trial. The cluster has one CPU, so that this task ends before the other one.
SCRIPT = """
import os
os.umask(0o022)
from tune.execution.ray_cluster import start_ray
start_ray(num_cpus=1)
import ray
def fail():
    raise ValueError("no data")
unused = ray.remote(fail).remote()
print(ray.get(ray.remote(lambda: os.environ["RAY_AUTH_TOKEN"]).remote()))
del unused
ray.shutdown()
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home folder of the process that has run the script."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def done(home: Path) -> "subprocess.CompletedProcess[str]":
    """The process that has run the script."""
    env = {**without_ray(), "HOME": str(home)}
    command = [sys.executable, "-c", SCRIPT]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)


def test_a_local_cluster_has_a_token_and_leaves_none_in_the_home_folder(
    done: "subprocess.CompletedProcess[str]", home: Path
) -> None:
    (token,) = done.stdout.split()
    assert len(token) == 64
    files = [path for path in home.rglob("*") if path.is_file()]
    assert [path for path in files if token.encode() in path.read_bytes()] == []
    assert [path for path in files if path.stat().st_mode & 0o077] == [], "other users could read these files"


def test_an_error_whose_result_is_never_used_is_not_printed(
    done: "subprocess.CompletedProcess[str]",
) -> None:
    assert done.stderr == ""
