#!/usr/bin/env bash
# A study on the nodes of one Slurm job: sbatch clusters/slurm.sh --dataset dtd --data-root /mnt/shared/data
# Arguments are options of `prometar search`. To resume the study, submit the same command again, or requeue the
# job.
#SBATCH --job-name=prometar
#SBATCH --nodes=2
# One Ray per node. Run no other Ray on these nodes: `ray stop` at the end stops all of yours.
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
# All memory of a node, because Ray assumes that it can use all. --exclusive alone does not allocate the memory.
#SBATCH --mem=0
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
# A failed or preempted node restarts the job, which resumes the study.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=prometar-%j.log
set -euo pipefail

# Set these two variables. SHARED is a folder that all nodes share and that outlives the job. It contains the
# study. VENV is the virtual environment in which the project is installed (pip install ".[study,cluster]").
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
# The script runs on the first node. The name of this node may resolve to 127.0.1.1, which other nodes cannot
# reach. So the address is that from which the first node would reach the last node. Nothing is sent.
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
# Each job has its own port and folder, because an earlier job on the node may still hold its port, and /tmp/ray
# belongs to the first user of the node.
address=$head:$((20000 + SLURM_JOB_ID % 10000))
ray_tmp=/tmp/ray-$SLURM_JOB_ID
# `ray symmetric-run` counts the nodes of the cluster at this address. The default is the cluster in /tmp/ray.
export RAY_ADDRESS=$address
# The exit status of `ray symmetric-run` is not that of the study. It is 0 if Ray did not start. On several
# nodes, it is 1 after success, because the command stops the Ray to which it is connected. So a file marks success.
succeeded=$SHARED/succeeded-$SLURM_JOB_ID
rm -f "$succeeded"
status=0

# The first node is head and worker. Slurm frees the nodes of a job together, so the GPUs of a separate head would
# be idle all the time.
# shellcheck disable=SC2016  # the arguments expand on the first node
srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  ray symmetric-run --address "$address" --min-nodes "$nodes" \
  --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
  --temp-dir="$ray_tmp" --disable-usage-stats \
  -- bash -c 'python "$@" && touch "$0"' "$succeeded" \
  tune/search.py --address "$address" --out "$SHARED/out" "$@" || status=$?

if [ -e "$succeeded" ]; then
  rm "$succeeded"
elif [ "$status" -ne 0 ]; then
  exit "$status"
else
  exit 1
fi
