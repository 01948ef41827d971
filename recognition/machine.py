"""What this machine has, and what this process takes of it: memory, CPU instructions, a GPU's load.

Bytes are bytes. Limits of the container (cgroup) count as the machine's. Whatever a platform does not tell is None.
Imports nothing of the project. Proven by tests/recognition/test_machine.py.
"""

import hashlib
import os
import platform
import re
import resource
import sys
from pathlib import Path

import torch

MATRIX_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "asimd", "asimdhp",
                       "bf16", "sve")
"""Flags of /proc/cpuinfo that decide how fast products are: those from asimd on are Arm's."""

CGROUP = Path("/sys/fs/cgroup")


def resident_bytes() -> int:
    """Memory that this process holds; where the system does not say, the most that it held so far."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most << 10


def total_memory() -> int | None:
    """Memory that processes here may take together."""
    return _least(_meminfo("MemTotal"), _number(CGROUP / "memory.max"))


def available_memory(cgroup: Path = CGROUP) -> int | None:
    """Memory that can still be had without swapping. Files that the system caches give way, and do not count as used.

    cgroup: where this container's figures are.
    """
    limit, used = _number(cgroup / "memory.max"), _number(cgroup / "memory.current")
    cached = sum(map(int, re.findall(r"^(?:in)?active_file (\d+)$", _text(cgroup / "memory.stat"), re.MULTILINE)))
    left = None if limit is None or used is None else max(0, limit - max(0, used - cached))
    return _least(_meminfo("MemAvailable"), left)


def cpu_model() -> str | None:
    """The processor's name."""
    found = re.search(r"^model name\s*:\s*(.+)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    return found[1].strip() if found else None


def matrix_instructions() -> list[str]:
    """Those of MATRIX_INSTRUCTIONS that the processor has."""
    flags = set(_flags().split())
    return [name for name in MATRIX_INSTRUCTIONS if name in flags]


def processor_key() -> str:
    """Digits that tell processors of other instructions apart: code compiled for one may not run on another."""
    said = f"{cpu_model()} {platform.machine()} {platform.processor()} {_flags()}"
    return hashlib.sha256(said.encode()).hexdigest()[:12]


def gpu_utilization(device: torch.device) -> float | None:
    """Share of the last moments in which the GPU computed anything, 0 to 1; None without NVIDIA's pynvml."""
    if device.type != "cuda":
        return None
    try:
        return torch.cuda.utilization(device) / 100
    except Exception:  # no pynvml, or a driver that does not tell it (MIG): errors of a package that need not be there
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _flags() -> str:
    """The processor's instructions, as /proc/cpuinfo lists them."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    return found[1] if found else ""


def _meminfo(field: str) -> int | None:
    found = re.search(rf"^{field}:\s+(\d+) kB", _text(Path("/proc/meminfo")), re.MULTILINE)
    return int(found[1]) << 10 if found else None


def _number(path: Path) -> int | None:
    """A figure of this container; None where there is none or it is without limit."""
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _least(*values: int | None) -> int | None:
    known = [value for value in values if value is not None]
    return min(known) if known else None
