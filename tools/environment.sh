#!/usr/bin/env bash
# Print the Python that has everything: the active environment's if it has, else .venv's, made from requirements.txt.
# .venv is made once and recognised by a hash of requirements.txt. What it says goes to standard error.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
say() { echo "$@" >&2; }

has_everything() {
    "$1" - 2>/dev/null <<'PYTHON'
import importlib.util as u, platform, sys
need = ["torch", "numpy", "onnx", "onnxscript", "onnxruntime", "cv2", "safetensors", "prettytable", "tqdm",
        "tensorboard", "matplotlib", "pytest", "pytest_timeout", "xdist"]
if sys.platform == "linux" and platform.machine() == "x86_64":
    need += ["nvidia.dali"]

def found(name):
    try:
        return u.find_spec(name) is not None
    except ImportError:
        return False

sys.exit(sys.version_info < (3, 11) or not all(map(found, need)))
PYTHON
}

if [[ -n ${VIRTUAL_ENV:-}${CONDA_PREFIX:-} ]]; then
    active=$(command -v python || true)
    if [[ -n $active ]] && has_everything "$active"; then
        say "using the active environment: $active"
        echo "$active"
        exit 0
    fi
    say "the active environment lacks packages of requirements.txt or Python 3.11; using .venv instead"
fi

# Two processes, or two nodes on a shared file system, must not make it at the same time.
if command -v flock >/dev/null; then
    exec 9> .venv.lock
    flock 9
fi
wanted=$(cksum < requirements.txt)
if [[ -x .venv/bin/python && -f .venv/requirements.cksum && $(cat .venv/requirements.cksum) == "$wanted" ]]; then
    echo "$PWD/.venv/bin/python"
    exit 0
fi

# Never the interpreter of .venv itself, which may be the active one: it may be about to be made anew.
PATH=$(printf '%s' "$PATH" | tr ':' '\n' | grep -vxF "$PWD/.venv/bin" | paste -sd: -)
new_enough() { command -v "$1" >/dev/null && "$1" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

if [[ -e .venv && ! -e .venv/made-by-run.sh ]]; then
    # Somebody else's: it is completed, never removed.
    if ! new_enough "$PWD/.venv/bin/python"; then
        say "error: $PWD/.venv was not made by run.sh and is no environment of Python 3.11 or newer; rename or remove it"
        exit 2
    fi
    say "installing requirements.txt into the .venv that is there: minutes, once"
else
    for base in python3 python3.13 python3.12 python3.11 python; do
        if new_enough "$base"; then break; fi
        base=""
    done
    if [[ -z $base ]]; then
        say "error: Python 3.11 or newer with the venv module is needed; found: $(python3 --version 2>/dev/null || echo none)"
        exit 2
    fi
    say "making .venv with $("$base" --version) from requirements.txt: minutes, once"
    rm -rf .venv
    mkdir .venv
    touch .venv/made-by-run.sh
    "$base" -m venv .venv
fi
# pip's own output only when it fails.
if ! .venv/bin/python -m pip install --disable-pip-version-check --no-compile -r requirements.txt > .venv/install.log 2>&1; then
    tail -n 20 .venv/install.log >&2
    say "error: installing requirements.txt failed; the whole output is in .venv/install.log"
    exit 2
fi
echo "$wanted" > .venv/requirements.cksum
say ".venv is ready"
echo "$PWD/.venv/bin/python"
