"""What the machine tells of itself is of the right size, and a process that takes memory shows it."""

import numpy as np
import torch

from recognition import machine


def test_memory_that_is_taken_shows():
    before = machine.resident_bytes()
    taken = np.ones(20 << 20, np.uint8)
    assert machine.resident_bytes() - before > 15 << 20
    assert taken.any()


def test_limits_lie_within_each_other():
    total, available = machine.total_memory(), machine.available_memory()
    assert total is None or total > machine.resident_bytes()
    assert total is None or available is None or available <= total


def test_instructions_are_known_names():
    assert set(machine.matrix_instructions()) <= set(machine.MATRIX_INSTRUCTIONS)


def test_a_cpu_has_no_gpu_load():
    assert machine.gpu_utilization(torch.device("cpu")) is None
