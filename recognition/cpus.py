"""The processors that this process may use, what they multiply, and the environment in which ranks use them well.

Imports nothing of the project. Proven by tests/recognition/test_cpus.py.
"""

import os
import re
from pathlib import Path


def available_cpus() -> int:
    """Processors in this process's affinity mask where the system knows one, else all: a container may have fewer."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bf16_instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """How this CPU multiplies bfloat16: "amx_bf16" (tiles), "avx512_bf16" (vectors), or "" (it does not, or unknown)."""
    try:
        flags = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
    except OSError:
        return ""
    known = flags[1].split() if flags else []
    return next((name for name in ("amx_bf16", "avx512_bf16") if name in known), "")


def rank_environment(threads: int) -> dict[str, str]:
    """Variables that a rank's process should start with; what the user has set goes before them.

    threads: of torch on this rank. Batches of images and a step's activations are large: malloc would give each back to
    the system and fetch it anew, page by page (docs/scaling.md has what that costs).
    """
    return {"OMP_NUM_THREADS": str(threads), "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
            "MALLOC_TRIM_THRESHOLD_": str(1 << 31)}
