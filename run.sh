#!/usr/bin/env bash
# Train, export and evaluate: bash run.sh [CONFIG] [--set a.b=VALUE ...]
# Makes .venv from requirements.txt once, unless the active environment has all that is needed.
# Environment: NPROC, NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT as with torchrun. See recognition/launch.py.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
arguments=("$@")
# A config is found from where the user stands, and everything else from the checkout.
if [[ ${#arguments[@]} -gt 0 && -f ${arguments[0]} ]]; then
    arguments[0]=$(cd "$(dirname "${arguments[0]}")" && pwd)/$(basename "${arguments[0]}")
fi
cd "$root"
python=$(bash tools/environment.sh)
exec "$python" -m recognition.launch ${arguments[@]+"${arguments[@]}"}
