"""Shards cover the classes, fresh centres do not depend on the ranks, the optimiser is torch's on the rows it gets."""

import numpy as np
import pytest
import torch

from recognition.heads.centers import RowSGD, initial_centers, normal, shard_range


def test_shards_are_contiguous_and_the_first_own_one_more():
    assert [shard_range(10, rank, 4) for rank in range(4)] == [(0, 3), (3, 6), (6, 8), (8, 10)]
    assert [shard_range(2, rank, 4) for rank in range(4)] == [(0, 1), (1, 2), (2, 2), (2, 2)]


def test_fresh_centers_are_the_same_however_they_are_cut():
    whole = initial_centers(3, 0, 50, 16)
    cut = torch.cat([initial_centers(3, start, stop, 16) for start, stop in ((0, 17), (17, 33), (33, 50))])
    assert torch.equal(whole, cut)
    assert not torch.equal(whole, initial_centers(4, 0, 50, 16))


def test_fresh_centers_are_normal_and_independent():
    x = (initial_centers(0, 0, 20000, 64) / 0.01).double().numpy()
    assert abs(x.mean()) < 4 / np.sqrt(x.size)
    assert abs(x.std() - 1) < 4 / np.sqrt(2 * x.size)
    assert abs((x**4).mean() - 3) < 0.02
    for a, b in ((x[:-1], x[1:]), (x[:, :-1], x[:, 1:])):
        assert abs((a * b).mean()) < 4 / np.sqrt(a.size)


def test_the_ends_of_the_uniform_numbers_stay_finite_and_in_order():
    """An infinite centre, one in 10^7 elements, would make every loss infinite."""
    u = torch.tensor([0, 2.0**-53, 0.25, 0.5, 0.75, 1 - 2.0**-52, 1 - 2.0**-53], dtype=torch.float64)
    x = normal(u)
    assert torch.isfinite(x).all()
    assert (x[1:] >= x[:-1]).all()
    assert x[4].item() == pytest.approx(0.01 * 0.6744897501960817)
    assert -0.09 < x[0].item() < -0.08


def test_row_sgd_is_torch_sgd():
    torch.manual_seed(0)
    weight = torch.randn(7, 5)
    reference = weight.clone().requires_grad_()
    optimizer = torch.optim.SGD([reference], lr=0.1, momentum=0.9, weight_decay=5e-4)
    velocity = torch.zeros_like(weight)
    for _ in range(5):
        gradient = torch.randn(7, 5)
        reference.grad = gradient.clone()
        optimizer.step()
        RowSGD(0.9, 5e-4).update(weight, velocity, gradient, 0.1, torch.tensor(True))
    torch.testing.assert_close(weight, reference.detach(), rtol=1e-6, atol=1e-6)


def test_not_finite_leaves_rows_unchanged():
    weight, velocity = torch.randn(3, 4), torch.randn(3, 4)
    before = weight.clone(), velocity.clone()
    RowSGD().update(weight, velocity, torch.full((3, 4), torch.nan), 0.1, torch.tensor(False))
    assert torch.equal(weight, before[0])
    assert torch.equal(velocity, before[1])
