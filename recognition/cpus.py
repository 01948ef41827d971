"""The processors that this process may use, and the environment in which ranks use them well.

Imports nothing of the project. Proven by tests/recognition/test_cpus.py.
"""

import os
from collections.abc import Mapping
from pathlib import Path


def available_cpus(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Processors that this process may use: those of its affinity mask, or of all; no more than a container's quota.

    quota: microseconds of all processors together, and of the time in which they may be used; "max": no limit.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        allowed, period = quota.read_text().split()
        return count if allowed == "max" else max(1, min(count, round(int(allowed) / int(period))))
    except (OSError, ValueError):
        return count


def rank_environment(threads: int, given: Mapping[str, str], libc: str | None = None) -> dict[str, str]:
    """Variables to add to those given, which go before them, where a rank's process starts.

    threads: of torch on this rank. Batches of images and a step's activations are large: malloc would give each back to
    the system and fetch it anew, page by page (docs/scaling.md has what that costs).
    libc: as `libc_version` tells.  Before glibc 2.35 a threshold above 32 MiB was ignored, and to set the other one
    alone would fix it at 128 KiB; there malloc maps nothing, unless what it maps is given.
    """
    added = {"OMP_NUM_THREADS": str(threads), "MALLOC_TRIM_THRESHOLD_": str(1 << 31)}
    library, _, version = (libc_version() if libc is None else libc).partition(" ")
    old = library == "glibc" and tuple(int(part) for part in version.split(".")[:2]) < (2, 35)
    if not any(name.startswith("MALLOC_MMAP_") for name in given):
        added |= {"MALLOC_MMAP_MAX_": "0"} if old else {"MALLOC_MMAP_THRESHOLD_": str(1 << 30)}
    return {name: value for name, value in added.items() if name not in given}


def libc_version() -> str:
    """The C library's name and version, "glibc 2.36"; nothing where it is another one."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, OSError, ValueError):
        return ""
