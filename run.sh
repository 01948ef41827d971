#!/usr/bin/env bash
# Train, export and evaluate what a config describes:
#
#   bash run.sh [CONFIG ...] [--set a.b=VALUE ...] [--seeds N ...] [--side-by-side N] [--single] [--fresh]
#               [--profile N] [--debug]
#   bash run.sh --doctor [CONFIG] [--set a.b=VALUE ...] [--seeds N ...] [--single] [--json FILE]
#
# CONFIG           a file of configs/ (default: configs/demo.py); the same command goes on where it stopped
# several CONFIGs, --seeds N ..., or a config with variants: every run, finished ones once only, and a table of
#                  mean ± deviation; --side-by-side N: so many at a time; --single: a config without its variants
# --set a.b=VALUE  replace settings, e.g. --set epochs=10 optimizer.lr=0.05 (all of them: recognition/config.py);
#                  relative paths in settings count from the checkout
# --fresh          put an earlier run of this name aside and start over
# --profile N      look closely at N steps: RUN/profile/summary.txt and a trace for Perfetto; the run goes on to its end
# --debug          show tracebacks
# --doctor         start nothing: what this machine has and what is slow on it, whether the data is sound, whether disk
#                  and memory suffice, and how long the run would take; --json FILE: the same for programs
#
# Environment: NPROC (ranks on this machine; default one per GPU, else 2), and as with torchrun on several machines
# NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT.
# Exit status: 0, or 2 settings, 3 data, 4 checkpoint, 5 numbers, 6 distributed.
#
# The first call makes .venv from requirements.txt, unless an active environment has all that is needed.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
for argument in "$@"; do
    if [[ $argument == -h || $argument == --help ]]; then
        sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$root/run.sh"
        cd "$root"
        echo "Configs: $(echo configs/*.py)"
        for folder in configs/*/; do
            files=("$folder"*.py)
            if [[ -e ${files[0]} ]]; then echo "         ${#files[@]} more in $folder, e.g. ${files[0]}"; fi
        done
        exit 0
    fi
done
arguments=("$@")
# A config and --json's file are found from where the user stands, and everything else from the checkout.
for i in "${!arguments[@]}"; do
    if [[ ${arguments[i]} == *.py && -f ${arguments[i]} ]]; then
        arguments[i]=$(cd "$(dirname "${arguments[i]}")" && pwd)/$(basename "${arguments[i]}")
    elif [[ $i -gt 0 && ${arguments[i - 1]} == --json && ${arguments[i]} != /* ]]; then
        arguments[i]=$PWD/${arguments[i]}
    fi
done
cd "$root"
python=$(bash tools/environment.sh)
exec "$python" -m recognition.launch ${arguments[@]+"${arguments[@]}"}
