"""The Slurm script, run for real on one node and on two: only srun and scontrol are stand-ins.

`ray symmetric-run` refuses to start where any Ray runs, and ends with `ray stop`, which ends every Ray it can
see. So each node is a set of Linux's namespaces: it has process numbers and a network of its own, and what it
leaves behind ends with it.
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

PROCESSES = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
NODE = [*PROCESSES, "--net"]
ALONE = [*NODE, "--user", "--map-root-user"]
# A node's own name is 127.0.1.1, as Debian has it; this script runs on the first node.
FIRST = """
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
SRUN = f"""#!/bin/sh
# It keeps a list of its options. The second node is a machine at the other end of the first one's cable.
printf '%s\\n' "$@" >"$SHARED/srun"
while [ "${{1#--}}" != "$1" ]; do shift; done
if [ "$SLURM_JOB_NUM_NODES" = 1 ]; then exec "$@"; fi
# The first process of a node must bury others' children, or `ray stop` waits for them; so it is a shell.
{shlex.join(PROCESSES)} sh -c '"$@"; exit $?' sh "$@" &
head=$!
export RAY_gcs_rpc_server_reconnect_timeout_s=5  # then a node ends whose head has; 60 by default
{shlex.join(NODE)} sh -c '
  mount --bind "$SHARED/hosts2" /etc/hosts
  until ip -o addr show dev eth 2>/dev/null | grep -q 10.9.0; do sleep 0.05; done
  ip link set lo up
  "$@"; exit $?' sh "$@" &
worker=$!
until [ "$(readlink /proc/$worker/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
ip link set far netns $worker name eth
nsenter --target $worker --net ip link set eth up
nsenter --target $worker --net ip addr add 10.9.0.2/24 dev eth
wait $head
status=$?
wait $worker
exit $status
"""
SCONTROL = """#!/bin/sh
case "$1 $2 $3" in
  "show hostnames node[1-1]") echo node1 ;;
  "show hostnames node[1-2]") printf 'node1\nnode2\n' ;;
  *) exit 1 ;;
esac
"""


def run(shared: Path, *arguments: str, cpus: str = "2", nodes: int = 1) -> subprocess.CompletedProcess[str]:
    """The script as sbatch would run it on that many nodes, with `shared` as the file system of all."""
    stand_ins = shared / "bin"
    stand_ins.mkdir(exist_ok=True)
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (stand_ins / name).write_text(text)
        (stand_ins / name).chmod(0o755)
    clean = {k: v for k, v in without_ray().items() if not k.startswith("SLURM_")}
    job = str(secrets.randbelow(10**8))
    slurm = {
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_JOB_NODELIST": f"node[1-{nodes}]",
        "SLURM_CPUS_PER_TASK": cpus,
    }
    environment = {
        **clean,
        **slurm,
        "SHARED": str(shared),
        "VENV": str(Path(sys.executable).parent.parent),
        "PATH": f"{stand_ins}:{os.environ['PATH']}",
    }
    try:
        return subprocess.run(
            [*ALONE, "sh", "-ec", FIRST, "sh", str(CLUSTERS / "slurm.sh"), *arguments],
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
    cable = [*ALONE, "ip", "link", "add", "one", "type", "veth", "peer", "name", "two"]
    found = shutil.which("unshare") and shutil.which("ip")
    if not found or subprocess.run(cable, capture_output=True).returncode:
        pytest.skip("needs Linux's namespaces")
    return tmp_path


def test_bash_parses_it_and_directives_come_before_commands() -> None:
    text = (CLUSTERS / "slurm.sh").read_text()
    assert subprocess.run(["bash", "-n", CLUSTERS / "slurm.sh"]).returncode == 0
    before, _, after = text.partition("set -euo")
    assert before.count("\n#SBATCH --") >= 10
    assert {"#SBATCH --exclusive", "#SBATCH --mem=0"} <= set(before.splitlines()), "the first gives no memory"
    assert "#SBATCH" not in after, "sbatch reads no directive behind the first command"


def test_a_study_runs_on_two_nodes(shared: Path) -> None:
    done = run(shared, *STUDY, cpus="1", nodes=2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 concurrent trials (--max-concurrent), each with 1 CPU" in done.stdout, "one on each node"
    assert "2 of 2 done" in done.stdout
    assert (shared / "srun").read_text().split()[:4] == [
        "--nodes=2",
        "--ntasks=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=1",
    ]
    assert (shared / "ray-token").stat().st_mode & 0o077 == 0, "the token is nobody else's to read"
    records = sorted((shared / "out/cells/trials").glob("*/record.json"))
    assert [json.loads(record.read_text())["state"] for record in records] == ["COMPLETE"] * 2
    assert not list(shared.glob("succeeded-*"))


def test_a_ray_that_does_not_start_is_a_failure(shared: Path) -> None:
    """`ray symmetric-run` itself exits with 0. On one node."""
    failed = run(shared, *STUDY, cpus="-1")
    assert "Failed to start Ray" in failed.stdout + failed.stderr
    assert failed.returncode != 0


def test_its_study_has_options_that_exist() -> None:
    text = (CLUSTERS / "slurm.sh").read_text()
    assert 'tune/search.py --address "$address" --out "$SHARED/out" "$@"' in text
    assert study_options(f"python tune/search.py --address a:1 --out b {shlex.join(STUDY)}")["trials"] == "2"
