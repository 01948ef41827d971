#!/usr/bin/env bash
# Run the tests: bash run_tests.sh [PYTEST ARGUMENTS]   e.g. bash run_tests.sh -m slow, bash run_tests.sh tests/eval
# Makes the environment if needed, as run.sh does. Without arguments two files of tests run at a time, given two cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
python=$(bash tools/environment.sh)
if [[ $# -eq 0 && $(getconf _NPROCESSORS_ONLN) -gt 1 ]]; then
    set -- -n 2 --dist loadfile
fi
exec "$python" -m pytest "$@"
