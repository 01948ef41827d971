"""What the machine tells of itself is of the right size, and a process that takes memory shows it."""

import mmap

import numpy as np
import torch

from recognition import machine


def test_memory_that_is_taken_shows():
    before = machine.resident_bytes()
    with mmap.mmap(-1, 64 << 20) as fresh:  # an array may get memory that the process held before
        np.frombuffer(fresh, np.uint8)[:] = 1
        assert machine.resident_bytes() - before > 48 << 20


def test_limits_lie_within_each_other():
    total, available = machine.total_memory(), machine.available_memory()
    assert total is None or total > machine.resident_bytes()
    assert total is None or available is None or available <= total


def test_a_containers_cached_files_are_available(tmp_path):
    for name, text in {"memory.max": "1000000\n", "memory.current": "900000\n",
                       "memory.stat": "anon 200000\nfile 700000\ninactive_file 400000\nactive_file 250000\n"}.items():
        (tmp_path / name).write_text(text)
    assert machine.available_memory(tmp_path) == 1000000 - (900000 - 650000)
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.available_memory(tmp_path) != 750000


def test_a_processor_has_one_key():
    assert machine.processor_key() == machine.processor_key()
    assert len(machine.processor_key()) == 12


def test_other_instructions_have_another_key(monkeypatch):
    before = machine.processor_key()
    monkeypatch.setattr(machine, "_text", lambda path: "model name\t: some\nflags\t\t: fpu avx2\n")
    assert machine.processor_key() != before


def test_instructions_are_known_names():
    assert set(machine.matrix_instructions()) <= set(machine.MATRIX_INSTRUCTIONS)


def test_a_cpu_has_no_gpu_load():
    assert machine.gpu_utilization(torch.device("cpu")) is None
