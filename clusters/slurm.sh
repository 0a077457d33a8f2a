#!/usr/bin/env bash
# A study on the nodes of one Slurm job: sbatch clusters/slurm.sh --dataset dtd --data-root /mnt/shared/data
# Arguments go to tune/search.py. The same command again, or Slurm's own requeue, goes on with the study.
#SBATCH --job-name=prometar
#SBATCH --nodes=2
# One Ray per node, and nothing else of yours there: `ray stop` at the end ends every Ray of yours on a node.
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
# All memory of a node, which the line above does not give, and on which Ray counts.
#SBATCH --mem=0
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
# A failed or pre-empted node starts the job again; the study's folder says what is done.
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=prometar-%j.log
set -euo pipefail

# Change these two: a folder that all nodes see, and the environment that has the project (pip install .).
: "${SHARED:=/mnt/shared/prometar}"
: "${VENV:=$SHARED/venv}"

# PATH is how `ray symmetric-run` finds the `ray` that it starts on each node.
export PATH="$VENV/bin:$PATH"
# One token for all nodes, in a file that only you can read; Ray reads both variables when it is imported.
export RAY_AUTH_MODE=token
: "${RAY_AUTH_TOKEN_PATH:=$SHARED/ray-token}"
export RAY_AUTH_TOKEN_PATH
if ! test -s "$RAY_AUTH_TOKEN_PATH"; then
  # Written beside its place: of two first jobs the second one takes the first one's.
  own=$RAY_AUTH_TOKEN_PATH.$SLURM_JOB_ID
  (umask 077 && python -c 'import secrets; print(secrets.token_hex(32))' >"$own")
  mv -n "$own" "$RAY_AUTH_TOKEN_PATH"
  rm -f "$own"
fi
# Ray ends a worker that idles for a second; a stream between two epochs would start one anew each time.
export RAY_idle_worker_killing_time_threshold_ms=600000
export RAY_USAGE_STATS_ENABLED=0
export RAY_prestart_worker_first_driver=0 # nor starts one for each CPU before there is work for it
# Nodes do not start at the same second; the default is 30.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

nodes=$SLURM_JOB_NUM_NODES
# This runs on the first node, which its /etc/hosts may call 127.0.1.1: there Ray would find no head. So the address is
# the one that leads to the last node; nothing is sent.
last=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tail -n 1)
head=$(python - "$last" <<'END'
import socket, sys
kind, how, _, _, there = socket.getaddrinfo(sys.argv[1], 9, type=socket.SOCK_DGRAM)[0]
with socket.socket(kind, how) as way:
    way.connect(there)
    own = way.getsockname()[0]
print(f"[{own}]" if ":" in own else own)
END
)
# Jobs that follow each other on a node do not meet: own port, own folder (/tmp/ray belongs to whoever came
# first).
address=$head:$((20000 + SLURM_JOB_ID % 10000))
ray_tmp=/tmp/ray-$SLURM_JOB_ID
# `ray symmetric-run` itself looks here for the cluster whose nodes it counts, else in /tmp/ray.
export RAY_ADDRESS=$address
# The status of `ray symmetric-run` says nothing: it is 0 where Ray did not start, and on several nodes 1 where all
# went well, since it has stopped the Ray that it is connected to. So the study leaves a mark that it has ended.
ended=$SHARED/ended-$SLURM_JOB_ID
rm -f "$ended"
status=0

# The first node is head and worker: an allocation ends as a whole, so a head apart would only waste its GPUs.
# shellcheck disable=SC2016  # they expand on the first node
srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
  ray symmetric-run --address "$address" --min-nodes "$nodes" \
  --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
  --temp-dir="$ray_tmp" --disable-usage-stats \
  -- bash -c 'python "$@" && touch "$0"' "$ended" \
  tune/search.py --address "$address" --out "$SHARED/out" "$@" || status=$?

if [ -e "$ended" ]; then rm "$ended"; else exit $((status ? status : 1)); fi
