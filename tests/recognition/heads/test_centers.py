"""Shards cover the classes, fresh centres are normal and do not depend on the ranks."""

import numpy as np
import pytest
import torch

from recognition.heads.centers import initial_centers, normal, shard_range


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
