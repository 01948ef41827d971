"""Running statistics: the mean over ranks after a good step, to the bit what they were after a bad one."""

import numpy as np
import pytest
import torch
from torch import nn

from recognition.batch_statistics import BatchStatistics
from recognition.distributed import Ranks


def _settle(ranks: Ranks, finite: bool) -> dict[str, np.ndarray]:
    module = nn.Sequential(nn.BatchNorm1d(3), nn.PReLU(), nn.BatchNorm1d(3))
    statistics = BatchStatistics(module, ranks)
    before = statistics.remember()
    value = float(ranks.rank + 1) if finite else torch.nan
    module(torch.full((4, 3), value))
    statistics.settle(before, torch.tensor(finite))
    return {name: buffer.numpy() for name, buffer in module.named_buffers()}


@pytest.mark.parametrize("world", [1, 2, 4])
def test_good_step_averages(on_ranks, world):
    for buffers in on_ranks(world, _settle, True):
        mean_input = sum(range(1, world + 1)) / world
        np.testing.assert_allclose(buffers["0.running_mean"], np.full(3, 0.1 * mean_input), rtol=1e-6)
        assert buffers["0.num_batches_tracked"] == 1


@pytest.mark.parametrize("world", [1, 2])
def test_bad_step_is_undone(on_ranks, world):
    fresh = nn.BatchNorm1d(3)
    for buffers in on_ranks(world, _settle, False):
        for index in (0, 2):
            for name, buffer in fresh.named_buffers():
                np.testing.assert_array_equal(buffers[f"{index}.{name}"], buffer.numpy())


def test_a_module_without_buffers():
    statistics = BatchStatistics(nn.Linear(2, 2), Ranks())
    statistics.settle(statistics.remember(), torch.tensor(True))
