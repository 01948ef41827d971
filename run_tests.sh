#!/usr/bin/env bash
# Run the tests: bash run_tests.sh [PYTEST ARGUMENTS]   e.g. bash run_tests.sh -m slow, bash run_tests.sh tests/eval
# Makes the environment if needed, as run.sh does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
python=$(bash tools/environment.sh)
exec "$python" -m pytest "$@"
