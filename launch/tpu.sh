#!/usr/bin/env bash
# A run on a TPU VM or on all hosts of a TPU slice: copies vadapt there, installs it, starts it.
#
#     gcloud compute tpus tpu-vm create NAME --zone=ZONE --spot \
#         --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite
#     launch/tpu.sh NAME ZONE CONFIG WORKDIR [--config.NAME=VALUE...]
#
# WORKDIR lies on the TPU's hosts; if there are several, in a folder that all of them share. Call it
# where it can stay (tmux). The same command goes on after a stop, also on a new TPU. To stop, here
# with a checkpoint:
#
#     gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command='pkill -f vadapt.main'
set -euo pipefail

if [[ $# -lt 4 || $1 == -* || $2 == -* || $3 == -* || $4 == -* ]]; then
    echo "usage: launch/tpu.sh NAME ZONE CONFIG WORKDIR [--config.NAME=VALUE...]" >&2
    exit 2
fi
name=$1 zone=$2
on_all_hosts() {
    gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

cd "$(dirname "$0")/.."
archive=$(mktemp -d)/vadapt.tar.gz
trap 'rm -r "$(dirname "$archive")"' EXIT
tar czf "$archive" --exclude=__pycache__ setup.py pyproject.toml README.md vadapt configs
gcloud compute tpus tpu-vm scp "$archive" "$name:" --zone="$zone" --worker=all

# The hosts' own Python may be older than vadapt's; uv brings one.
# shellcheck disable=SC2016
on_all_hosts 'set -e; mkdir -p vadapt; tar xzf vadapt.tar.gz -C vadapt; cd vadapt
    export PATH="$HOME/.local/bin:$PATH"
    command -v uv >/dev/null || python3 -m pip install --quiet --user uv
    test -e .venv || uv venv --quiet --python 3.12
    uv pip install --quiet -e ".[tpu,torch]"'

printf -v run '%q ' .venv/bin/python -m vadapt.main --config="$3" --workdir="$4" "${@:5}"
on_all_hosts "cd vadapt && exec $run"
