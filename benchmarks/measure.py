"""How benchmarks measure: a function in a fresh process, seconds a step and of its parts, largest memory in use.

Convention: device is "cpu" or "cuda". Memory is what tensors take on a GPU and what is resident on the CPU. `reserved`:
what torch's allocator holds on a GPU, which is more, but has the activations of CUDA graphs: they lie in a pool of the
graph's own, whose tensors count as freed. Linux counts a process's peak anew on request; elsewhere the peak is that
since the process began.
Proven by tests/benchmarks/test_head_benchmark.py and test_step.py beside it.
"""

import contextlib
import ctypes
import multiprocessing
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from recognition.errors import SettingsError
from recognition.phases import Phases


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise SettingsError(f"the measuring process was killed, probably for lack of memory: {arguments}") from None


def time_steps(step: Callable[[], object], count: int, device: str) -> tuple[float, float]:
    """Seconds a step and CPU seconds a step (all threads of this process), means over `count` of them."""
    if device == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        step()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if device == "cuda":
        end.record()
        end.synchronize()
        wall = begin.elapsed_time(end) / 1e3
    return wall / count, cpu / count


class PhaseClock(Phases):
    """Seconds of each part of a step: wall clock on the CPU, CUDA events on the step's stream on a GPU."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"
        self.marks: list[tuple[str, Any, Any]] = []

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """See `Phases`; a part may come several times in a step."""
        begin = self._now()
        try:
            yield
        finally:
            self.marks.append((name, begin, self._now()))

    def seconds(self) -> dict[str, float]:
        """Seconds by part since the last call; waits for a GPU."""
        if self.on_gpu:
            torch.cuda.synchronize()
        total: dict[str, float] = {}
        for name, begin, end in self.marks:
            total[name] = total.get(name, 0.0) + (begin.elapsed_time(end) / 1e3 if self.on_gpu else end - begin)
        self.marks.clear()
        return total

    def _now(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def matmul_tflops(device: str, dtype: torch.dtype, threads: int | None = None) -> float:
    """10¹² operations a second of a large square matrix product on this device, the best of several."""
    if threads:
        torch.set_num_threads(threads)
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = min(time_steps(lambda: a @ b, 5, device)[0] for _ in range(4))
    return 2 * size**3 / seconds / 1e12


def memory_now(device: str, reserved: bool = False) -> int:
    """Bytes in use: of tensors on a GPU, resident of this process on the CPU."""
    if device == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved() if reserved else torch.cuda.memory_allocated()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps what was freed
    if trim:
        trim(0)
    return status("VmRSS")


def restart_high_water(device: str) -> None:
    """Let `high_water` count from here on."""
    if device == "cuda":
        torch.cuda.empty_cache()  # what is only kept for later would count as reserved
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def high_water(device: str, reserved: bool = False) -> int:
    """Largest number of bytes in use so far."""
    if device == "cuda":
        return torch.cuda.max_memory_reserved() if reserved else torch.cuda.max_memory_allocated()
    return status("VmHWM")


def status(field: str) -> int:
    """A figure of Linux's /proc/self/status in bytes; elsewhere the largest so far, whatever was asked."""
    path = Path("/proc/self/status")
    if path.exists():
        found = re.search(rf"^{field}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
        assert found
        return int(found[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
