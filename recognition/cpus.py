"""How many processors this process may use: fewer than the machine has in a container or under taskset."""

import os


def available_cpus() -> int:
    """Processors in this process's affinity mask where the system knows one, else all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
