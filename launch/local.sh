#!/usr/bin/env bash
# Runs COMMAND as N processes of one run on this machine, on CPU, to try what several hosts do.
#
#     launch/local.sh N COMMAND...
#     launch/local.sh 2 python -m vadapt.main --config=configs/pad_msip.py:scenes --workdir=runs/two
#
# Every line is printed behind the number of its process. SIGINT and SIGTERM go to all processes.
# When one fails the others are ended, and its exit code is that of this script.
set -euo pipefail

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: launch/local.sh N COMMAND...   (N: how many processes)" >&2
    exit 2
fi
count=$1
shift
own_words=5 # seconds that the others have, when one has failed, to end with a message of their own
patience=20 # and until they are killed

port=$(python3 -c 'import socket; s = socket.create_server(("", 0)); print(s.getsockname()[1])')
export JAX_PLATFORMS=cpu PYTHONUNBUFFERED=1
export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_NUM_PROCESSES=$count

number_lines() {
    trap '' INT TERM # the last words come after the signal
    while IFS= read -r line || [[ -n $line ]]; do printf '[%s] %s\n' "$1" "$line"; done
}

start() {
    # Keeps this shell until the command has ended. A trap that does something is not handed down to
    # the command; an ignored signal would be.
    trap : INT TERM
    JAX_PROCESS_ID=$1 "${@:2}" 2>&1 | number_lines "$1"
}

signal_all() {
    for pid in "${pids[@]}"; do
        kill -s "$1" -- "-$pid" 2>/dev/null || true
    done
}

pids=()
set -m # a process group for each, so that signals reach what a command starts, and Ctrl-C comes once
for ((number = 0; number < count; number++)); do
    start "$number" "$@" &
    pids[number]=$!
done
trap 'signal_all KILL' EXIT
trap 'signal_all INT' INT
trap 'signal_all TERM' TERM HUP

code=0
failed_at=0
running=$count
while ((running > 0)); do
    sleep 0.2 || true
    for number in "${!pids[@]}"; do
        kill -0 "${pids[number]}" 2>/dev/null && continue
        status=0
        wait "${pids[number]}" || status=$?
        unset "pids[number]"
        running=$((running - 1))
        if ((status != 0 && code == 0)); then
            echo "launch/local.sh: process $number ended with code $status" >&2
            code=$status
            failed_at=$SECONDS
        fi
    done
    if ((code != 0 && SECONDS > failed_at + patience)); then
        signal_all KILL
    elif ((code != 0 && SECONDS > failed_at + own_words)); then
        signal_all TERM
    fi
done
trap - EXIT
exit "$code"
