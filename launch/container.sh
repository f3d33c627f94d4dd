#!/usr/bin/env bash
# What each container of launch/gke.yaml runs:
#
#     launch/container.sh CONFIG WORKDIR [--config.NAME=VALUE...]
#
# A run that a signal stopped (143) fails here with code 75 (try again), as one does that ends well
# without a result, so that the JobSet starts it anew and it goes on.
set -euo pipefail

if [[ $# -lt 2 || $1 == -* || $2 == -* ]]; then
    echo "usage: launch/container.sh CONFIG WORKDIR [--config.NAME=VALUE...]" >&2
    exit 2
fi

python -m vadapt.main --config="$1" --workdir="$2" "${@:3}" &
run=$!
trap 'kill -s TERM "$run"' TERM
while kill -0 "$run" 2>/dev/null; do
    wait "$run" || true # a signal ends the waiting, not the run, which saves first
done
code=0
wait "$run" || code=$?

if [[ $code == 143 || ($code == 0 && ! -e $2/result.json) ]]; then
    echo "launch/container.sh: stopped before the end; start it again to go on" >&2
    exit 75
fi
exit "$code"
