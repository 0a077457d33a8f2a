"""clusters/slurm.sh on one node and on two nodes. Only the commands `srun` and `scontrol` are replaced.

`ray symmetric-run` does not start if it finds another Ray. At the end it calls `ray stop`, which stops every
Ray that it finds. So each node consists of Linux namespaces, with processes and a network of its own. When
the first process of a node ends, the kernel ends all processes that are left on the node.
"""

import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import without_ray
from tests.support.shipped import CLUSTERS, ROOT, SMALL_STUDY, study_options

NEW_PROCESSES = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
"""Command that starts another command with its own process IDs."""
NEW_NODE = [*NEW_PROCESSES, "--net"]
"""Command that starts another command on a new node: with its own process IDs and network."""
ROOTLESS_NODE = [*NEW_NODE, "--user", "--map-root-user"]
"""Command like NEW_NODE that does not need root, because it starts a new user namespace."""
# Script of the first node. It creates a cable, whose other end is called "far", and runs the Slurm script.
# Debian maps the own name of a machine to 127.0.1.1, which other machines cannot reach. So do both nodes.
FIRST_NODE_SCRIPT = r"""
printf '127.0.0.1 localhost\n127.0.1.1 node1\n10.9.0.2 node2\n' >"$SHARED/hosts1"
printf '127.0.0.1 localhost\n127.0.1.1 node2\n10.9.0.1 node1\n' >"$SHARED/hosts2"
mount --bind "$SHARED/hosts1" /etc/hosts
ip link set lo up
ip link add eth type veth peer name far
ip addr add 10.9.0.1/24 dev eth
ip link set eth up
exec bash "$@"
"""
STUDY = [*SMALL_STUDY, "--trials", "2", "--max-concurrent", "2"]
SRUN = rf"""#!/bin/sh
# Write the arguments to a file for the test.
printf '%s\n' "$@" >"$SHARED/srun"
# Skip the options of srun. The command follows them.
while [ "${{1#--}}" != "$1" ]; do shift; done
if [ "$SLURM_JOB_NUM_NODES" = 1 ]; then exec "$@"; fi
# Process 1 of a namespace must reap orphans, or `ray stop` waits for them. A shell does.
{shlex.join(NEW_PROCESSES)} sh -c '"$@"; exit $?' sh "$@" &
head=$!
# A node ends 5 s after its head has ended (default: 60 s).
export RAY_gcs_rpc_server_reconnect_timeout_s=5
# The second node waits for its end of the cable, which is moved to it below.
{shlex.join(NEW_NODE)} sh -c '
  mount --bind "$SHARED/hosts2" /etc/hosts
  until ip -o addr show dev eth 2>/dev/null | grep -q 10.9.0; do sleep 0.05; done
  ip link set lo up
  "$@"; exit $?' sh "$@" &
worker=$!
# Wait until the worker has its own network.
until [ "$(readlink /proc/$worker/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
ip link set far netns $worker name eth
nsenter --target $worker --net ip link set eth up
nsenter --target $worker --net ip addr add 10.9.0.2/24 dev eth
wait $head
status=$?
wait $worker
exit $status
"""
SCONTROL = r"""#!/bin/sh
case "$1 $2 $3" in
  "show hostnames node[1-1]") echo node1 ;;
  "show hostnames node[1-2]") printf 'node1\nnode2\n' ;;
  *) exit 1 ;;
esac
"""


def run(shared: Path, *arguments: str, cpus: str = "2", nodes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run the script as `sbatch` runs it, at most 800 s.

    Args:
        shared: Folder that all nodes share.
        arguments: Arguments of the script.
        cpus: CPUs per task.
        nodes: Number of nodes.
    """
    stand_ins = shared / "bin"
    stand_ins.mkdir(exist_ok=True)
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (stand_ins / name).write_text(text)
        (stand_ins / name).chmod(0o755)
    outside_slurm = {name: value for name, value in without_ray().items() if not name.startswith("SLURM_")}
    job = str(secrets.randbelow(10**8))
    slurm = {
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_JOB_NODELIST": f"node[1-{nodes}]",
        "SLURM_CPUS_PER_TASK": cpus,
    }
    environment = {
        **outside_slurm,
        **slurm,
        "SHARED": str(shared),
        "VENV": str(Path(sys.executable).parent.parent),
        "PATH": f"{stand_ins}:{os.environ['PATH']}",
    }
    try:
        return subprocess.run(
            [*ROOTLESS_NODE, "sh", "-ec", FIRST_NODE_SCRIPT, "sh", str(CLUSTERS / "slurm.sh"), *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=800,
        )
    finally:
        shutil.rmtree(f"/tmp/ray-{job}", ignore_errors=True)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Folder that all nodes share. Skip the test if this machine cannot create nodes and cables."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("requires the commands unshare and ip")
    cable = [*ROOTLESS_NODE, "ip", "link", "add", "one", "type", "veth", "peer", "name", "two"]
    if subprocess.run(cable, capture_output=True).returncode != 0:
        pytest.skip("requires Linux namespaces")
    return tmp_path


def test_bash_parses_the_script_and_its_directives_precede_all_commands() -> None:
    text = (CLUSTERS / "slurm.sh").read_text()
    assert subprocess.run(["bash", "-n", CLUSTERS / "slurm.sh"]).returncode == 0
    before_first_command, _, after = text.partition("set -euo")
    assert before_first_command.count("\n#SBATCH --") >= 10
    assert "#SBATCH" not in after, "sbatch ignores directives after the first command"

    directives = set(before_first_command.splitlines())
    assert "#SBATCH --exclusive" in directives
    assert "#SBATCH --mem=0" in directives, "--exclusive does not allocate memory"


def test_a_study_runs_on_two_nodes(shared: Path) -> None:
    done = run(shared, *STUDY, cpus="1", nodes=2)

    # Both trials have ended. A node has 1 CPU, so they ran on different nodes.
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 concurrent trials (all trials), each with 1 CPU" in done.stdout
    assert "2 of 2 done" in done.stdout
    records = sorted((shared / "out/cells/trials").glob("*/record.json"))
    assert [json.loads(record.read_text())["state"] for record in records] == ["COMPLETE"] * 2

    # The script starts one task on each node.
    assert (shared / "srun").read_text().split()[:4] == [
        "--nodes=2",
        "--ntasks=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=1",
    ]

    # It protects the token, and deletes the mark of its success.
    assert (shared / "ray-token").stat().st_mode & 0o077 == 0, "only the owner can read the token"
    assert not list(shared.glob("succeeded-*"))


def test_the_script_fails_if_ray_does_not_start(shared: Path) -> None:
    """`ray symmetric-run` exits with status 0 in this case. A negative number of CPUs prevents the start."""
    failed = run(shared, *STUDY, cpus="-1")
    assert "Failed to start Ray" in failed.stdout + failed.stderr
    assert failed.returncode != 0


def test_the_script_calls_the_search_with_options_that_exist() -> None:
    text = (CLUSTERS / "slurm.sh").read_text()
    assert 'tune/search.py --address "$address" --out "$SHARED/out" "$@"' in text
    options = study_options(f"python tune/search.py --address a:1 --out b {shlex.join(STUDY)}")
    assert options["trials"] == "2"
