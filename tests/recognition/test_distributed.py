"""Collectives against what they are defined to compute, and each gather against its adjoint."""

import numpy as np
import pytest
import torch
from torch import nn

from recognition import distributed
from recognition.distributed import Ranks
from recognition.errors import DataError, SettingsError

WORLDS = [1, 2, 4]


def _adjoint_pair(ranks: Ranks) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(ranks.rank)
    x = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(3 * ranks.world_size, 5, generator=generator, dtype=torch.float64)
    left = distributed.sum_over_ranks((distributed.gather_rows(x, ranks) * y).sum(), ranks)
    right = distributed.sum_over_ranks((x * distributed.reduce_scatter_rows(y, ranks)).sum(), ranks)
    return left.item(), right.item()


@pytest.mark.parametrize("world", WORLDS)
def test_gather_and_reduce_scatter_are_adjoint(on_ranks, world):
    for left, right in on_ranks(world, _adjoint_pair):
        assert left == pytest.approx(right, rel=1e-12)


def _rank_order(ranks: Ranks) -> tuple[np.ndarray, np.ndarray, float]:
    own = torch.full((2, 1), float(ranks.rank))
    uneven = torch.full((ranks.rank, 2), float(ranks.rank))
    most = distributed.max_over_ranks(torch.tensor(float(ranks.rank)), ranks)
    return (
        distributed.gather_rows(own, ranks).numpy(),
        distributed.gather_uneven_rows(uneven, ranks).numpy(),
        most.item(),
    )


@pytest.mark.parametrize("world", WORLDS)
def test_rows_come_in_rank_order(on_ranks, world):
    for even, uneven, most in on_ranks(world, _rank_order):
        assert even[:, 0].tolist() == [rank for rank in range(world) for _ in range(2)]
        assert uneven[:, 0].tolist() == [rank for rank in range(world) for _ in range(rank)]
        assert most == world - 1


def _gradient_of_replica(ranks: Ranks) -> tuple[np.ndarray, np.ndarray]:
    torch.manual_seed(ranks.rank)  # replicas start different; `replicate` makes them rank 0's
    module = nn.Linear(4, 3)
    replica = distributed.replicate(module, ranks, torch.ones(2, 4))
    x = torch.full((2, 4), float(ranks.rank + 1))
    replica(x).backward(torch.ones(2, 3))
    assert module.weight.grad is not None
    return module.weight.grad.numpy(), module.weight.detach().numpy()


@pytest.mark.parametrize("world", WORLDS)
def test_replica_gradients_are_summed_not_averaged(on_ranks, world):
    results = on_ranks(world, _gradient_of_replica)
    for gradient, weight in results:
        np.testing.assert_array_equal(gradient, np.full((3, 4), 2 * sum(range(1, world + 1))))
        np.testing.assert_array_equal(weight, results[0][1])


def _compare(ranks: Ranks, values: list[str]) -> str:
    try:
        distributed.require_same("settings", {"same": 1, "seed": values[ranks.rank]}, ranks)
    except SettingsError as error:
        return str(error)
    return ""


def test_difference_between_ranks_is_found_and_named_on_all(on_ranks):
    assert on_ranks(2, _compare, ["a", "a"]) == ["", ""]
    for message in on_ranks(2, _compare, ["a", "b"]):
        assert message == "settings of the ranks differ: seed: b on rank 1, a on rank 0"


def _fail(ranks: Ranks) -> str:
    try:
        distributed.fail_together(DataError("bad file") if ranks.rank == 1 else None, ranks)
    except DataError as error:
        return str(error)
    return ""


def test_one_rank_failure_is_raised_on_all(on_ranks):
    assert on_ranks(2, _fail) == ["bad file"] * 2
