#!/usr/bin/env bash
# A run on the GPUs of this machine, one or many: a single process drives all of them.
#
#     launch/gpu.sh CONFIG WORKDIR [--config.NAME=VALUE...]
#     CUDA_VISIBLE_DEVICES=0,1 launch/gpu.sh configs/pad_msip.py runs/pad --config.data.path=MSIP
#
# Fails if jax finds no GPU, where vadapt itself would train on the CPU. The same command goes on
# after a stop.
set -euo pipefail

if [[ $# -lt 2 || $1 == -* || $2 == -* ]]; then
    echo "usage: launch/gpu.sh CONFIG WORKDIR [--config.NAME=VALUE...]" >&2
    exit 2
fi
if ! python -c 'import jax; jax.devices("gpu")' 2>/dev/null; then
    echo "launch/gpu.sh: jax finds no GPU. nvidia-smi must show one, and pip install -e '.[cuda]'" \
        "brings jax's part; without a GPU run python -m vadapt.main itself" >&2
    exit 1
fi
# jax takes three quarters of the memory at once; nothing else runs here.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}

exec python -m vadapt.main --config="$1" --workdir="$2" "${@:3}"
