#!/usr/bin/env bash
# A run over the nodes of a Slurm job: one process a node, which drives all its GPUs.
#
#     sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh CONFIG WORKDIR [--config.NAME=VALUE...]
#
# Submit it from the repository, with vadapt's environment active; WORKDIR is a folder that all
# nodes share. Five minutes before its time is up, and when it is preempted, the run saves and ends;
# then the job goes back into the queue, until the run is finished.
#SBATCH --job-name=vadapt
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
set -euo pipefail

if [[ $# -lt 2 || $1 == -* || $2 == -* || $* == *--mode* || -z ${SLURM_JOB_ID:-} ]]; then
    echo "usage: sbatch --nodes=N --gpus-per-node=G launch/slurm.sh CONFIG WORKDIR" \
        "[--config.NAME=VALUE...]" >&2
    exit 2
fi

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# A port of the job's own, below those that the system hands out.
export JAX_COORDINATOR_ADDRESS=${hosts[0]}:$((20000 + SLURM_JOB_ID % 10000))
export JAX_NUM_PROCESSES=$SLURM_JOB_NUM_NODES

# The number differs from task to task, so each task sets it itself.
code=0
# shellcheck disable=SC2016
srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=1 --label \
    bash -c 'JAX_PROCESS_ID=$SLURM_PROCID exec "$@"' vadapt \
    python -m vadapt.main --config="$1" --workdir="$2" "${@:3}" || code=$?

# 143 is a run that a signal stopped; a command that ends well without a result is started again, too.
if [[ $code == 143 || ($code == 0 && ! -e $2/result.json) ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
