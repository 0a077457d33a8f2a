"""The token of a cluster that a command starts."""

import subprocess
import sys
from pathlib import Path

from tests.support.processes import ROOT, without_ray

# Starts a local cluster as a study does, and prints the token that its workers have. With this umask, other
# users can read new files.
SCRIPT = """
import os
os.umask(0o022)
from tune.execution.ray_cluster import start_ray
start_ray(num_cpus=1)
import ray
print(ray.get(ray.remote(lambda: os.environ["RAY_AUTH_TOKEN"]).remote()))
ray.shutdown()
"""


def test_a_local_cluster_has_a_token_and_leaves_none_in_the_home_folder(tmp_path: Path) -> None:
    env = {**without_ray(), "HOME": str(tmp_path)}
    command = [sys.executable, "-c", SCRIPT]

    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)

    (token,) = done.stdout.split()
    assert len(token) == 64
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if token.encode() in path.read_bytes()] == []
    assert [path for path in files if path.stat().st_mode & 0o077] == [], "other users could read these files"
