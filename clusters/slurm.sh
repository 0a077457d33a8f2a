#!/usr/bin/env bash
# A study on the nodes of one Slurm job: sbatch clusters/slurm.sh --dataset dtd --data-root /mnt/shared/data
# Arguments are those of tune/search.py. To resume the study, submit the same command again, or requeue the job.
#SBATCH --job-name=prometar
#SBATCH --nodes=2
# One Ray per node. Run no other Ray on these nodes: `ray stop` at the end stops all of yours.
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
# All memory of a node. Ray assumes that it can use all, but --exclusive does not allocate it.
#SBATCH --mem=0
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
# A failed or preempted node restarts the job, which resumes the study.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=prometar-%j.log
set -euo pipefail

# Change these two. SHARED is a folder that all nodes share and that survives the job. It contains the study.
# VENV is the environment in which the project is installed (pip install ".[study,cluster]").
: "${SHARED:=/mnt/shared/prometar}"
: "${VENV:=$SHARED/venv}"

# `ray symmetric-run` finds `ray` on PATH of each node.
export PATH="$VENV/bin:$PATH"
# One token for all nodes, in a file that only you can read. Ray reads both variables when it is imported.
export RAY_AUTH_MODE=token
: "${RAY_AUTH_TOKEN_PATH:=$SHARED/ray-token}"
export RAY_AUTH_TOKEN_PATH
if ! test -s "$RAY_AUTH_TOKEN_PATH"; then
  # Write a temporary file and rename it, so that jobs that start together use the same token.
  temporary=$RAY_AUTH_TOKEN_PATH.$SLURM_JOB_ID
  (umask 077 && python -c 'import secrets; print(secrets.token_hex(32))' >"$temporary")
  mv -n "$temporary" "$RAY_AUTH_TOKEN_PATH" || test -s "$RAY_AUTH_TOKEN_PATH"
  rm -f "$temporary"
fi
# By default, Ray stops a worker that is idle for a second, and a stream would start a new one in every epoch.
export RAY_idle_worker_killing_time_threshold_ms=600000
export RAY_USAGE_STATS_ENABLED=0
export RAY_prestart_worker_first_driver=0 # no worker per CPU before there is work for it
# Seconds to wait for all nodes (default: 30).
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

nodes=$SLURM_JOB_NUM_NODES
# This runs on the first node, whose name may resolve to 127.0.1.1, which other nodes cannot reach. So use the
# local address of the route to the last node. Nothing is sent.
last=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tail -n 1)
head=$(python - "$last" <<'END'
import socket, sys
family, kind, _, _, address = socket.getaddrinfo(sys.argv[1], 9, type=socket.SOCK_DGRAM)[0]
with socket.socket(family, kind) as sock:
    sock.connect(address)
    host = sock.getsockname()[0]
print(f"[{host}]" if ":" in host else host)
END
)
# Consecutive jobs on a node need their own port and folder (/tmp/ray belongs to the first user).
address=$head:$((20000 + SLURM_JOB_ID % 10000))
ray_tmp=/tmp/ray-$SLURM_JOB_ID
# `ray symmetric-run` counts the nodes of the cluster at this address, by default of the one in /tmp/ray.
export RAY_ADDRESS=$address
# The status of `ray symmetric-run` is meaningless: 0 if Ray did not start, and on several nodes 1 after success,
# since it stops the Ray that it is connected to. So a file marks the success of the study.
succeeded=$SHARED/succeeded-$SLURM_JOB_ID
rm -f "$succeeded"
status=0

# The first node is head and worker: an allocation ends as a whole, so a separate head would waste its GPUs.
# shellcheck disable=SC2016  # the arguments expand on the first node
srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  ray symmetric-run --address "$address" --min-nodes "$nodes" \
  --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
  --temp-dir="$ray_tmp" --disable-usage-stats \
  -- bash -c 'python "$@" && touch "$0"' "$succeeded" \
  tune/search.py --address "$address" --out "$SHARED/out" "$@" || status=$?

if [ -e "$succeeded" ]; then rm "$succeeded"; else exit $((status ? status : 1)); fi
